"""Several processes: the same weights, every image evaluated once, one voice, one mistake one line."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run, free_port, write_images
from forks import Job
from tiny_net import TinyNet

from utils.common import devices
from utils.common.errors import UserError
from utils.common.launch import is_main_process, launch_environment

SCRIPT = "tests/small_training.py"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_one_process_and_two_and_parts_agree(launch: Run, run: Run, images: Path, tmp_path: Path) -> None:
    """Up to the rounding of sums in another order."""
    assert run(images, "one.pt", "--train-batch", 8, script=SCRIPT).returncode == 0
    assert run(images, "parts.pt", "--train-batch", 4, "--parts", 2, script=SCRIPT).returncode == 0
    started = launch(SCRIPT, images, "two.pt", "--train-batch", 4)
    assert started.returncode == 0, started.stderr
    assert started.stdout.count("hello") == 1
    assert launch(SCRIPT, images, "both.pt", "--train-batch", 2, "--parts", 2).returncode == 0
    one, parts, two, both = (weights(tmp_path / f"{name}.pt") for name in ("one", "parts", "two", "both"))
    for key, value in one.items():
        for other in (parts, two, both):
            assert torch.allclose(other[key], value, rtol=1e-5, atol=1e-6), key


def test_three_processes_that_start_anew_go_on_bit_for_bit(launch: Run, images: Path, tmp_path: Path) -> None:
    """Three gradients are added in an order that DistributedDataParallel changes after its first step.

    The second of four steps is left out, because of one process's loss; in the one run all learn of it at
    once, in the other after the fourth.
    """
    flags = (images, "--train-batch", 2, "--epochs", 2, "--bad", 1)
    for name, more in (("whole.pt", ("--ahead", 1)), ("anew.pt", ("--wrap-anew", "--ahead", 16))):
        result = launch(SCRIPT, flags[0], name, *flags[1:], *more, processes=3)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("step 2 of 4, at learning rate") == 2
    whole, anew = weights(tmp_path / "whole.pt"), weights(tmp_path / "anew.pt")
    assert all(torch.equal(value, anew[key]) for key, value in whole.items())


def test_processes_with_different_data(launch: Run, images: Path, tmp_path: Path) -> None:
    """As when every machine has its own copy."""
    write_images(tmp_path / "copy" / "train" / "cat", 3)
    write_images(tmp_path / "copy" / "val" / "cat", 3)
    script = tmp_path / "own_copy.py"
    script.write_text(
        "import os, sys, imagenet_fast\n"
        "from utils.command_line import cli\n"
        "sys.argv[sys.argv.index('--data') + 1] = ('images', 'copy')[int(os.environ['RANK'])]\n"
        "cli.run(imagenet_fast.main)\n"
    )
    flags = ("-a", "tiny", "--img-size", 32, "--data", "images")
    result = launch(script, *flags)
    assert result.returncode != 0
    host = socket.gethostname()
    assert result.stderr.count("error: --data is 3 training images, 3 validation images, 1 class") == 1
    assert f" on rank 1 ({host}) and 24 training images" in result.stderr


def test_under_slurm(start: Callable[..., Job], images: Path, tmp_path: Path) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": 7}
    slurm["MASTER_PORT"] = free_port()
    command = (REPOSITORY / SCRIPT, images, "out.pt", "--train-batch", 4)
    jobs = [
        start(*command, environments=[{**slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}])
        for rank in range(2)
    ]
    assert [job.complete().stdout.count("hello") for job in jobs] == [1, 0]
    assert (tmp_path / "out.pt").exists()


def test_where_a_process_stands() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launch_environment(torchrun, None) == torchrun
    old = {key: value for key, value in torchrun.items() if key != "LOCAL_RANK"}
    assert launch_environment(old, 1) == torchrun
    with pytest.raises(UserError, match="--local-rank"):
        launch_environment(old, None)
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        launch_environment({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None)
    assert launch_environment({}, None) == {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "41"}
    place = launch_environment({**slurm, "SLURM_STEP_NODELIST": "gpu1,gpu2"}, None)
    assert place == {
        **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "20041"}
    }
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"):
        with pytest.raises(UserError, match=f"{name}=many in the environment is not a number"):
            launch_environment({**slurm, "SLURM_STEP_NODELIST": "gpu1,gpu2", name: "many"}, None)
    # In the batch script itself, without srun, there is one process whatever the allocation.
    assert launch_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None)["WORLD_SIZE"] == "1"


def test_the_host_list_is_expanded_by_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    slurm["SLURM_STEP_NODELIST"] = "gpu[3-4]"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="MASTER_ADDR"):
        launch_environment(slurm, None)
    assert launch_environment({**slurm, "MASTER_ADDR": "gpu3"}, None)["MASTER_ADDR"] == "gpu3"
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho gpu3\necho gpu4\n")
    (tmp_path / "scontrol").chmod(0o755)
    assert launch_environment(slurm, None)["MASTER_ADDR"] == "gpu3"


@pytest.mark.parametrize(
    ("device", "gpus", "local", "under_slurm", "expected"),
    [
        ("auto", 0, 3, False, "cpu"),
        ("cpu", 4, 1, False, "cpu"),
        ("auto", 4, 3, False, "cuda:3"),
        ("cuda", 1, 2, True, "cuda:0"),  # srun shows every process its own GPU
        ("cuda", 4, 2, True, "cuda:2"),
    ],
)
def test_the_device_of_a_process(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, local: int, under_slurm: bool, expected: str
) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: gpus)
    assert devices.process_device(device, local, under_slurm) == torch.device(expected)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 2)
    with pytest.raises(UserError, match="only 2 GPUs for process 3"):
        devices.process_device("auto", 2, False)


def test_who_speaks_before_the_processes_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.parametrize("processes", [2, 3])
def test_evaluation_does_not_depend_on_the_processes(
    call: Run, launch: Run, tmp_path: Path, processes: int
) -> None:
    """101 images in batches of 7."""
    for label, count in enumerate((40, 33, 28)):
        write_images(tmp_path / "images" / "val" / f"class{label}", count, label)
    torch.manual_seed(0)
    net = TinyNet(num_classes=3)
    with torch.no_grad():
        net(torch.randn(64, 3, 32, 32))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    net_and_data = ("-a", "tiny", "--data", "images", "-e", "--resume", "net.pth")
    flags = (*net_and_data, "--img-size", 32, "--test-batch", 7, "-j", 0)
    alone = call(*flags, script="imagenet_fast.py").stdout.splitlines()[-1]
    together = launch("imagenet_fast.py", *flags, processes=processes)
    assert together.returncode == 0, together.stderr
    spoken = together.stdout.splitlines()
    assert len(spoken) == 2
    expected, found = (list(map(float, re.findall(r"\d+\.\d+", line))) for line in (alone, spoken[-1]))
    assert found[1:] == expected[1:]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert 0 < expected[1] < 100


def test_a_mistake_is_one_line_of_one_process(launch: Run, images: Path, tmp_path: Path) -> None:
    """Also when rank 0 is the slowest to start."""
    slow = tmp_path / "imagenet_fast.py"
    slow.write_text(
        "import os, sys, time\n"
        "time.sleep(2 * (os.environ['RANK'] == '0'))\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import imagenet_fast\n"
        "from utils.command_line import cli\n"
        "cli.run(imagenet_fast.main)\n"
    )
    flags = ("--data", images, "-a", "tiny", "--img-size", 32, "-c", "out")
    missing = launch("imagenet_fast.py", *flags, "--resume", "nowhere.pth")
    wrong = launch(slow, *flags, "--lr", -1)
    for result, line in (
        (missing, "error: --resume nowhere.pth: no such file"),
        (wrong, "error: argument --lr"),
    ):
        assert result.returncode != 0
        assert result.stderr.count("imagenet_fast.py: error:") == 1
        assert f"imagenet_fast.py: {line}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_rank_that_fails_ends_the_job_with_its_message(launch: Run, images: Path) -> None:
    result = launch(SCRIPT, images, "out.pt", "--train-batch", 4, "--fail", 1)
    assert result.returncode != 0
    assert "RuntimeError: trouble on rank 1" in result.stderr
