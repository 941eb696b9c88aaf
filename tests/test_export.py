"""scripts/export.py: files whose outputs are the network's, for any batch size."""

import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error
from small_checkpoint import ARCH, CLASSES, SIZE, calibrated, write_checkpoint
from test_robustness import SHALLOW
from tiny_net import TinyNet
from torch import Tensor

SCRIPT = "scripts/export.py"
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}")
FORMATS = pytest.mark.parametrize(
    "out", [pytest.param("out.onnx", marks=[needs_onnx, pytest.mark.slow]), "out.pt2"]
)


@pytest.fixture
def export(call: Run, tmp_path: Path) -> Run:
    """The script within this process, on a checkpoint ``net.pth.tar``."""
    write_checkpoint(tmp_path).rename(tmp_path / "net.pth.tar")
    return lambda *arguments: call("--resume", "net.pth.tar", *arguments, script=SCRIPT)


@pytest.fixture
def export_tiny(export: Run, tmp_path: Path) -> Run:
    """The same on a network that is exported in a moment."""
    write_checkpoint(tmp_path, TinyNet(num_classes=3).eval(), arch="tiny").rename(tmp_path / "net.pth.tar")
    return export


def reader(path: Path) -> Callable[[Tensor], Tensor]:
    """What a file computes."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def assert_same(path: Path, net: Any) -> None:
    exported = reader(path)
    for batch in (1, 3, 8):
        images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = net(images)
            assert (exported(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def notes(path: Path) -> dict[str, str]:
    """What a file says about itself."""
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if "network.json" in name)
            return json.loads(archive.read(name))
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@FORMATS
def test_the_outputs_are_the_networks(export: Run, tmp_path: Path, out: str) -> None:
    (tmp_path / out).touch()
    result = export(out, "-a", ARCH, "--overwrite")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{ARCH}: images (B, 3, {SIZE}, {SIZE}), 3 logits" in result.stdout
    assert f"wrote {out}: {(tmp_path / out).stat().st_size:,} bytes" in result.stdout
    assert_same(tmp_path / out, calibrated())
    known = notes(tmp_path / out)
    assert (known["crop_pct"], known["interpolation"]) == ("0.875", "bilinear")
    assert (known["arch"], known["img_size"], json.loads(known["classes"])) == (ARCH, "64", list(CLASSES))
    assert json.loads(known["mean"]) == [0.485, 0.456, 0.406]


def test_class_names_of_a_list(export_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.export.BATCHES", (1,))
    (tmp_path / "names.txt").write_text("Katze\nHund\nEule\n")
    assert export_tiny("out.pt2", "--class-list", "names.txt").returncode == 0
    assert json.loads(notes(tmp_path / "out.pt2")["classes"]) == ["Katze", "Hund", "Eule"]
    (tmp_path / "names.txt").write_text("Katze\n")
    refused = export_tiny("out.pt2", "--overwrite", "--class-list", "names.txt")
    assert_one_line_error(refused, "--class-list names.txt: 1 line for 3 outputs")


def test_one_that_differs_too_much_is_not_written(
    export_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.pt2").write_text("old")
    monkeypatch.setattr("scripts.export.TOLERANCE", -1.0)
    monkeypatch.setattr("scripts.export.BATCHES", (1,))
    result = export_tiny("out.pt2", "--overwrite")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("out.pt2: differs by ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth.tar", "out.pt2"]
    assert (tmp_path / "out.pt2").read_text() == "old"


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("arch", [*SHALLOW, "resnet18"])
def test_every_kind_of_net(export: Run, tmp_path: Path, arch: str, out: str) -> None:
    net = calibrated(arch)
    write_checkpoint(tmp_path, net, arch=arch).rename(tmp_path / "net.pth.tar")
    result = export(out)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same(tmp_path / out, net)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ((), ("OUT", "--help")),
        (("net.pt",), ("net.pt: the suffix says the format; give one of .onnx .pt2",)),
        (("nowhere/net.pt2",), ("nowhere/net.pt2: its folder is not there",)),
        (("there.pt2",), ("there.pt2 is there already: give another name, or --overwrite",)),
        (("net.pt2", "--resume", "none"), ("--resume none: no such file",)),
        (("net.pt2", "-a", "sge_resnet18"), ("does not fit sge_resnet18", f"-a {ARCH}")),
        (("net.pt2", "--img-size", "0"), ("--img-size", "at least 1")),
    ],
)
def test_bad_usage(
    export: Run, tmp_path: Path, arguments: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    (tmp_path / "there.pt2").write_text("old")
    assert_one_line_error(export(*arguments), "export.py: error: ", *fragments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth.tar", "there.pt2"]
    assert (tmp_path / "there.pt2").read_text() == "old"


def test_a_library_that_is_missing(export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "onnx" in name else name)
    assert_one_line_error(export("net.onnx"), "not installed; pip install onnx onnxscript onnxruntime")


def test_weights_that_are_too_many_for_onnx(export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.export.LARGEST", 1000)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert_one_line_error(export("net.onnx"), "net.onnx: an .onnx file holds at most 2 GiB", ".pt2")


def test_help_has_an_example(export: Run) -> None:
    assert "\n    python scripts/export.py -a " in export("--help").stdout
