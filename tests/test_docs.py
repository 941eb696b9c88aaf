"""Every command of README.md and docs/ runs: as typed but for paths, sizes and process counts.

A command that no rule covers fails, so that none can be written and never be run.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run, assert_one_line_error, free_port, write_images
from documented import PAGES, Command, commands, inline, of_page, snippets
from small_checkpoint import calibrated, fields
from small_coco import write_coco, write_detector
from test_commands import SMALLER, readme_commands
from test_detection import NARROW
from torch.distributed.run import get_args_parser

import imagenet
import imagenet_fast
from models import create_model, list_models

# Commands that another test runs: all of these flags and more, or what this test could not.
ELSEWHERE = {
    "python scripts/export.py -a sge_resnet50 --resume sge_resnet50.pth.tar sge_resnet50.onnx": (
        "test_export.py::test_the_outputs_are_the_networks"
    ),
    "python scripts/prepare_imagenet.py /path/to/downloads /path/to/target --check": (
        "test_prepare_imagenet.py::test_check"
    ),
    "python scripts/prepare_imagenet.py SOURCE TARGET": (
        "test_prepare_imagenet.py::test_the_tree_is_that_of_the_class_folders"
    ),
    "python scripts/results.py": "test_results.py::test_a_stale_table_is_noticed_and_rewritten",
    "python scripts/record_run.py checkpoints/sge-1 --study ablation.toml": (
        "test_record_run.py::test_what_is_kept"
    ),
    "python scripts/study.py STUDY.toml": "test_study.py::test_a_study_runs_and_its_tables_regenerate",
    "python scripts/study.py ablation.toml --jobs 2": (
        "test_study.py::test_a_study_runs_and_its_tables_regenerate"
    ),
    "python scripts/study.py edges.toml --jobs 2": "test_research.py::test_the_page",
    "python scripts/study.py edges.toml --speed": "test_research.py::test_the_page",
    "python scripts/study.py edges.toml --tables": "test_research.py::test_the_page",
    "python scripts/analyse_gates.py --resume checkpoints/study/edges/edge-1/checkpoint.pth.tar "
    "--gate-file edge_gate.py:EdgeGate --data digits -o edge_statistics": (
        "test_research.py::test_the_pictures_of_the_gate"
    ),
    "python scripts/show_gates.py --cam --resume checkpoints/study/edges/edge-1/checkpoint.pth.tar "
    "--gate-file edge_gate.py:EdgeGate cat.JPEG -o edge_pictures": (
        "test_research.py::test_the_pictures_of_the_gate"
    ),
    "python imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet-a -e --resume sge_resnet101.pth.tar "
    "--outputs of-data": "test_evaluation.py::test_a_part_of_the_outputs",
    "python imagenet_fast.py -a sge_resnet101 --data /path/to/imagenet1k/ -e --resume sge_resnet101.pth.tar "
    "--real real.json": "test_evaluation.py::test_real_labels",
    "python imagenet_fast.py -a sge_resnet18 --data cifar10 --stem small --train-batch 128 --lr 0.2 "
    "--wd 5e-4 --cos --epochs 200 -c checkpoints/cifar10/sge_resnet18": (
        "test_cifar.py::test_what_a_run_takes_and_its_checkpoint_says"
    ),
    "python imagenet_fast.py -e --data cifar10 --resume "
    "checkpoints/cifar10/sge_resnet18/model_best.pth.tar": (
        "test_cifar.py::test_what_a_run_takes_and_its_checkpoint_says"
    ),
    "bash scripts/demo.sh": "test_shell.py::test_demo",
    "bash scripts/test.sh": "test_shell.py::test_lint_types_and_tests",
    "bash scripts/test.sh --gpu": "test_shell.py::test_lint_types_and_tests",
    "bash scripts/gpu_check.sh": "test_gpu_check.py::test_it_goes_on_after_a_failure_and_names_it",
}
# By script, and for benchmark.py by subcommand: flags after the command's own, which make it small.
TRAINING = ("--epochs", "1", "--img-size", "32", "-j", "0")
TIMES = ("--rounds", "1", "--warmup", "0")
CPU = ("--device", "cpu", "--threads", "1")
SMALL: dict[str, tuple[str, ...]] = {
    "imagenet.py": TRAINING,
    "imagenet_fast.py": TRAINING,
    "imagenet_mobile.py": TRAINING,
    "detection/train.py": (
        *("-a", "sge_resnet18", "--epochs", "1", "--min-size", "32", "--max-size", "48", "-j", "0"),
    ),
    "scripts/show_detections.py": (),
    "scripts/summary.py": ("--img-size", "64"),
    "scripts/show_batch.py": ("--img-size", "64", "-j", "0", "--epochs", "9", "--train-batch", "8"),
    "scripts/plot_logs.py": (),
    "scripts/show_gates.py": ("--img-size", "64"),
    "scripts/analyse_gates.py": ("--img-size", "64", "-j", "0"),
    "scripts/predict.py": ("-j", "0"),
    "scripts/convert_checkpoint.py": (),
    "scripts/check_data.py": ("-j", "1", "--quick"),
    "scripts/resize_images.py": ("-j", "1"),
    "scripts/benchmark.py": ("--help",),  # where a page only names it
    "scripts/benchmark.py loader": (*TIMES, "--images", "16", "--batch", "8", "--img-size", "32", "-j", "0"),
    "scripts/benchmark.py decode": (*TIMES, "--images", "4"),
    "scripts/benchmark.py growth": ("--images", "20", "30", "--epochs", "2", "--read", "20", "-j", "0"),
    "scripts/benchmark.py step": (*TIMES, *CPU, "--batch", "2", "--img-size", "32", "--steps", "2"),
    "scripts/benchmark.py model": (
        *(*TIMES, *CPU, "--batch", "2", "--img-size", "32", "--baseline", "shufflenetv2_05x"),
        *("--precision", "fp32"),  # half precision takes minutes on a CPU
    ),
    "scripts/benchmark.py optimizer": (*TIMES, *CPU, "--arch", "shufflenetv2_05x"),
}
PLACES = ("/path/to/imagenet1k", "/path/to/photos", "DATA", "FOLDER")  # an image folder each
COCO = "/path/to/coco/"
GATE_FILES = {"my_gate.py": ("gates.md", "MyGate"), "edge_gate.py": ("research.md", "EdgeGate")}
MADE = (
    ".png",
    ".csv",
    ".json",
    ".safetensors",
    ".pth",
    ".onnx",
    ".pt2",
)  # of words that name what a tool writes


def documented() -> list[Command]:
    """Without what test_commands.py runs in processes of its own: the training commands of the README."""
    started = {tuple(words) for words in readme_commands()}
    return [command for page in PAGES for command in of_page(page) if command.words not in started]


def rule_of(command: Command) -> str | None:
    """The key of ELSEWHERE or SMALL that covers a command, or ``-c`` for a line of Python."""
    words = command.words
    if (line := " ".join(words)) in ELSEWHERE:
        return line
    if words[:2] == ("python", "-c"):
        return "-c"
    at = words.index(command.script) if command.script else len(words)
    return next((key for key in (" ".join(words[at : at + 2]), command.script) if key in SMALL), None)


def substitute(command: Command, key: str, folder: Path) -> list[str]:
    """The words after the script, with what they name made in ``folder``."""
    words = []
    for word in command.words[command.words.index(command.script) + 1 :]:
        for large, small in SMALLER.items():
            word = word.replace(large, small)
        word = "images" if word.rstrip("/") in PLACES else word.removeprefix("../")
        word = "coco" if word == COCO else word
        word = "shufflenetv2_05x" if word == "NAME" else word
        make(folder, word, arch_of(command), command.script)
        words += (
            sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
        )
    if key == "scripts/benchmark.py model":  # two nets say as much as nine
        nets = [word for word in words if word in list_models()]
        words = [word for word in words if word not in nets[2:]]
    if key.startswith("scripts/benchmark.py "):
        words += SMALL[key]
        return words
    return [*words, *SMALL[key]]


def arch_of(command: Command) -> str:
    """The small network in place of the one that ``-a`` names."""
    words = command.words
    if command.script == "detection/train.py":
        return "sge_resnet18"
    arch = words[words.index("-a") + 1] if "-a" in words else "shufflenetv2_05x"
    for large, small in SMALLER.items():
        arch = arch.replace(large, small)
    return arch


def make(folder: Path, word: str, arch: str, script: str) -> None:
    """What a command reads: checkpoints, pictures, the folders of runs."""
    if word == "coco":
        write_coco(folder / word, "train2017", 2)
        write_coco(folder / word, "val2017", 1)
    elif word.startswith("checkpoints/coco/") and word.endswith(".pth.tar"):
        write_detector(folder / word, "mask_rcnn", "sge_resnet18")
    elif word.endswith(".pth.tar"):
        content = {**fields(calibrated(arch)), "arch": arch, "epoch": 0}
        del content["optimizer"]
        for name in (word.replace("*", "1"), word.replace("*", "2")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, folder / name)
    elif word.partition(":")[0] in GATE_FILES:
        page, name = GATE_FILES[word.partition(":")[0]]
        text = (REPOSITORY / "docs" / page).read_text()
        (written,) = (snippet for snippet in snippets(text) if f"class {name}(" in snippet)
        (folder / word.partition(":")[0]).write_text(written)
    elif word in ("cat.JPEG", "dog.JPEG", "photos/"):
        write_images(folder / "photos", 2)
        for name in ("cat", "dog"):
            (folder / f"{name}.JPEG").write_bytes((folder / "photos" / "0.JPEG").read_bytes())
    elif script == "scripts/plot_logs.py" and word.startswith("checkpoints/"):
        (folder / word).mkdir(parents=True)
        head = "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc."
        (folder / word / "log.txt").write_text(f"{head}\n0.1\t2\t2\t10\t20\n0.1\t1\t1\t20\t30\n")


def test_every_command_is_covered() -> None:
    assert not [str(command) for command in documented() if rule_of(command) is None]
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text()
    found = {" ".join(command.words) for page in PAGES for command in of_page(page)}
    assert set(ELSEWHERE) <= found, "a rule for a command that no page has any more"
    assert set(SMALL) <= {str(rule_of(command)) for page in PAGES for command in of_page(page)}


def test_what_is_a_command() -> None:
    text = (
        "Say `python scripts/a.py\n--x 1` or `python` or `ls -l`.\n\n"
        "```bash\nA=1 B=2 python b.py \\\n    -c 'd e'  # why\nbash c.sh\nbash c.sh\n```\n\n"
        "```\npython not.py\n```\n"
    )
    found = [command.words for command in commands(text)]
    assert found == [
        ("python", "b.py", "-c", "d e"),
        ("bash", "c.sh"),
        ("python", "scripts/a.py", "--x", "1"),
    ]
    assert rule_of(Command("", ("python", "scripts/new_tool.py", "--x"))) is None
    assert rule_of(Command("", ("bash", "scripts/demo.sh", "--new"))) is None
    assert rule_of(Command("", ("rm", "-r", "x"))) is None


def in_process() -> list[Command]:
    return [command for command in documented() if rule_of(command) in SMALL and not of_several(command)]


def costly(command: Command) -> bool:
    """Whether it is one more of a kind that takes seconds and stands more than once in the docs."""
    kinds = ("torchrun .*detection/train.py", "scripts/benchmark.py model", "scripts/show_gates.py")
    alike = [[c for c in in_process() if re.search(kind, str(c))] for kind in kinds]
    return any(command in commands[1:] for commands in alike)


def of_several(command: Command) -> bool:
    """Whether it is one of the commands for several machines."""
    return command.words[0] == "srun" or any(word.startswith("--nnodes") for word in command.words)


GATE_FILE = next(
    body for body in snippets((REPOSITORY / "docs/gates.md").read_text()) if "class MyGate" in body
)


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow if costly(c) else ()) for c in in_process()],
    ids=str,
)
def test_command(
    command: Command, call: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within this process; what torchrun would start is started here, after torchrun has read its flags."""
    if command.words[0] == "torchrun":
        read = get_args_parser().parse_args(command.words[1:])
        assert read.training_script == command.script
    key = rule_of(command)
    assert key is not None
    for name, value in NARROW.items():
        monkeypatch.setattr(f"detection.{name}", value)
    words = substitute(command, key, tmp_path)
    if "--pretrained" in words:  # of a network with a thousand classes; nothing is downloaded
        weights = create_model(arch_of(command)).state_dict()
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
        (tmp_path / "thousand.txt").write_text("\n".join(["cat", "dog", "owl", *map(str, range(997))]))
        words += ["--class-list", "thousand.txt"]
    if "--gate-file" in words:
        (tmp_path / "my_gate.py").write_text(GATE_FILE)
    result = call(*words, script=command.script)
    assert result.returncode == 0, result.stderr
    written = [word for word in words if word.endswith(MADE)]
    written += [
        words[words.index(flag) + 1] for flag in ("-o", "-c") if flag in words and "--dry-run" not in words
    ]
    assert [word for word in written if not (tmp_path / word).exists()] == []
    assert result.stdout or written


@pytest.mark.parametrize("command", [c for c in documented() if rule_of(c) == "-c"], ids=str)
def test_a_line_of_python(command: Command) -> None:
    exec(command.words[2], {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_snippets(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``images`` is the reader's batch; a model file is found as if it were copied."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "models"))
    for snippet in snippets(page.read_text()):
        exec(snippet, {"images": torch.randn(1, 3, 64, 64)})


def several_machines() -> list[Command]:
    return [command for command in documented() if of_several(command)]


def node(command: Command, rank: int, port: int, images: Path) -> tuple[list[str], dict[str, str]]:
    """What runs on one of two machines with one process each, both of them here; srun's part is played."""
    at = command.words.index(command.script)
    words = [word.replace("resnet101", "resnet18") for word in command.words[at + 1 :]]
    script = [str(REPOSITORY / command.script), *(str(images) if "imagenet1k" in w else w for w in words)]
    script += [*TRAINING, "--train-batch", "8"]
    if command.words[0] == "srun":
        slurm = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": "7", "MASTER_PORT": str(port)}
        return [sys.executable, *script], slurm
    launcher = ["-m", "torch.distributed.run", *command.words[1:at]]
    if command.words[0] == "python":
        launcher = list(command.words[1:at])
    changed = {"--nproc_per_node=8": "--nproc_per_node=1", "--node_rank=0": f"--node_rank={rank}"}
    changed |= {"--master_port=29500": f"--master_port={port}"}
    launcher = [changed.get(word, word).replace("NODE0:29500", f"NODE0:{port}") for word in launcher]
    return [sys.executable, *(word.replace("NODE0", "localhost") for word in launcher), *script], {}


# What is special of them, test_commands.py and test_distributed.py have on one machine.
@pytest.mark.slow
@pytest.mark.parametrize("command", several_machines(), ids=str)
def test_several_machines(command: Command, images: Path, tmp_path: Path) -> None:
    port = free_port()
    jobs = []
    for rank in range(2):
        line, variables = node(command, rank, port, images)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        jobs.append(subprocess.Popen(line, cwd=tmp_path, env=environment, text=True, **pipes))  # type: ignore[call-overload]
    ended = [job.communicate(timeout=200) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], ended
    assert sum(output.count("2 processes, each on CPU") for output, _ in ended) == 1
    assert sum(output.count("best top-1") for output, _ in ended) == 1
    assert (tmp_path / "checkpoints" / "imagenet" / "sge_resnet18" / "checkpoint.pth.tar").exists()


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """The first long name of every flag."""
    longs = ([o for o in action.option_strings if o.startswith("--")] for action in parser._actions)
    return {names[0] for names in longs if names} - {"--help"}


def test_the_table_of_flags() -> None:
    """Every flag of the scripts stands there, those of imagenet.py in the rows that are marked."""
    text = (REPOSITORY / "docs" / "training.md").read_text().split("## Flags")[1].split("### New flags")[0]
    fast, plain = flags_of(imagenet_fast.create_parser()), flags_of(imagenet.create_parser())
    aliases = {"--weight-decay": "--wd", "--arch": "-a", "--checkpoint": "-c", "--evaluate": "-e"}
    named = set(re.findall(r"(?<![\w-])--?[\w-]+", text))
    assert {aliases.get(flag, flag) for flag in fast | plain} - named == set()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    code = " ".join(inline(" ".join(row for row in rows if " * |" in row)))
    starred = set(re.findall(r"(?<![\w-])--?[\w-]+", code))
    assert {aliases.get(flag, flag) for flag in plain} == (
        starred | {"--lr", "--schedule", "--gamma", "--momentum", "--wd", "--gpu-id", "--modelsize"}
    )


# What the published imagenet_fast.py accepted.
REFUSED = """--alpha 1 | --cutmix_prob 0.5 | --cutout_size 8 | --mineps 1 | --lam 1 | --print-always
--opt-level O0 --loss-scale 128 | --opt-level O0 --keep-batchnorm-fp32 | --opt-level O1 --keep-batchnorm-fp32
--el2 | --el2 --nowd-conv --wd-all | --wd-all --nowd-bn | --wd-all --nowd-fc | --wd-all --nowd-conv
--cutout --mixup | --cutout --cutmix | --cos --schedule 3 | --pretrained --resume a.pth
--pretrained -a ws_resnet50 | -e | --start-epoch 100 | --resume '' | --epoch 2"""


@pytest.mark.parametrize("flags", [flags.strip() for flags in re.split(r"[|\n]", REFUSED)])
def test_what_is_refused_stands_in_the_table_of_differences(flags: str, call: Run, images: Path) -> None:
    words = shlex.split(flags)
    assert_one_line_error(call("--data", images, *words, script="imagenet_fast.py"))
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    (row,) = (line for line in readme if "| refused in one line: " in line)
    named = set(re.findall(r"`(--?[\w-]+)`", row)) | {"--opt-level", "-a", "--epoch"}
    assert {word for word in words if word.startswith("-")} <= named


# Flags of other programs, and published ones that are gone.
OTHERS = {
    "--drop",
    "--depth",
    "--widen-factor",
    "--logdir",
    "--max-restarts",
    "--nnodes",
    "--node_rank",
    "--slow",
    "--gpu",
}
OTHERS |= {
    "--signals-to-handle",
    "--nproc_per_node",
    "--rdzv_backend",
    "--rdzv_endpoint",
    "--master_addr",
    "--master_port",
    "--signal",
}
OTHERS |= {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--tiny"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_is_named_exists(page: Path) -> None:
    folders = (REPOSITORY / name for name in ("utils", "scripts", "detection"))
    files = [*REPOSITORY.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    known = {flag for path in files for flag in re.findall(r'"(--[\w-]+)"', path.read_text())} | OTHERS
    known |= {f"--nowd-{kind}" for kind in ("bn", "fc", "conv")} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", page.read_text())) - known == set()
