"""docs/research.md: the gate, the study and the commands that it has."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run, write_classes
from documented import FENCE, of_page, snippets
from test_shell import copy as copy_of_the_code
from test_study import commit_all
from tiny_net import TinyResNet

from models.gates import add_gates
from scripts.lib.study_file import read_study
from scripts.lib.study_networks import check_rows
from utils.networks.gating import load_gate
from utils.runs.folder import LAST, save

PAGE = REPOSITORY / "docs" / "research.md"
copy = pytest.fixture(copy_of_the_code.__wrapped__)  # type: ignore[attr-defined]


def write_files(folder: Path, epochs: int = 3) -> None:
    """The two files that the page has its reader write."""
    (gate,) = snippets(PAGE.read_text())
    (toml,) = (body for language, body in FENCE.findall(PAGE.read_text()) if language == "toml")
    (folder / "edge_gate.py").write_text(gate)
    assert "--epochs 3" in toml
    (folder / "edges.toml").write_text(toml.replace("--epochs 3", f"--epochs {epochs}"))


def test_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate does what the page says, and the study's networks exist."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    gate = load_gate("edge_gate.py:EdgeGate")(8)
    flat = torch.ones(1, 8, 9, 9)
    assert torch.allclose(gate(flat), flat * torch.sigmoid(torch.tensor(1.0)))
    torch.nn.init.ones_(gate.get_parameter("weight"))
    edge = flat.clone()
    edge[..., 4:] = 2
    ratio = (gate(edge) / edge)[0, 0, 4]
    assert ratio[3:5].min() > ratio[[0, 1, 7, 8]].max()
    study = read_study(Path("edges.toml"))
    assert list(study.rows) == ["plain", "edge", "edge_5x5", "se_standard", "se_pre"]
    check_rows(study)


def test_the_pictures_of_the_gate(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the page's commands, with a small network that has the gate; drawn, but not into pixels."""
    for script in ("show_gates", "analyse_gates"):
        monkeypatch.setattr(f"scripts.{script}.rendered", lambda figure: b"")
    write_files(tmp_path)
    net = add_gates(TinyResNet(num_classes=3), load_gate(f"{tmp_path}/edge_gate.py:EdgeGate"))
    arguments = {"img_size": 64, "gate_file": "edge_gate.py:EdgeGate"}
    state = {"state_dict": net.state_dict(), "arch": "tiny_resnet", "classes": ["cat", "dog", "owl"]}
    (tmp_path / "run").mkdir()
    saved = save({**state, "epoch": 1, "images": 0, "arguments": arguments}, tmp_path / "run")
    images = write_classes(tmp_path / "images", 1)
    replaced = {"digits": images, f"checkpoints/study/edges/edge-1/{LAST}": saved}
    replaced["cat.JPEG"] = images / "train" / "cat" / "0.JPEG"
    scripts = []
    for command in of_page(PAGE):
        if command.script in ("scripts/analyse_gates.py", "scripts/show_gates.py"):
            words = [replaced.get(word, word) for word in command.words[2:]]
            result = call(*words, script=command.script)
            assert result.returncode == 0, result.stderr
            scripts.append(command.script)
    assert scripts == ["scripts/analyse_gates.py", "scripts/show_gates.py"]
    statistics = tmp_path / "edge_statistics"
    assert {"gates.csv", "depth.png"} <= {path.name for path in statistics.iterdir()}
    assert "sigmoid of the positions" in (statistics / "gates.csv").read_text()
    assert list((tmp_path / "edge_pictures").glob("001_*cam.png"))


@pytest.mark.slow
def test_the_page(copy: Path) -> None:
    """Its study as typed, but for a single epoch."""
    (copy / ".gitignore").open("a").write("\n/.venv\n")
    commit_all(copy)
    write_files(copy, epochs=1)
    for command in of_page(PAGE):
        if command.script == "scripts/study.py":
            words = [sys.executable, *command.words[1:]]
            done = subprocess.run(words, cwd=copy, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
    table = (copy / "edges" / "table.md").read_text()
    assert re.search(
        r"\| edge \| --gate-file edge_gate.py:EdgeGate \| 11.18M \| 0.037 \| \d.\d\d \| 1 \| 2 \|", table
    )
    for name in ("parameters", "gflops", "step"):
        assert (copy / "edges" / f"tradeoff_{name}.png").exists()
