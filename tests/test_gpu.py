"""On a CUDA GPU: a CPU's numbers, every precision, exact resume. Run alone, by scripts/test.sh --gpu."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, assert_one_line_error, write_classes
from forks import Job
from golden_recipe import fill, golden_input, load_manifest
from small_checkpoint import write_checkpoint
from small_coco import write_coco
from test_commands import SCRIPTS
from test_detection import SMALL as SMALL_COCO
from test_detection import assert_same, state
from test_detection import rows as log_rows
from test_faults import assert_no_trace
from test_goldens import NAMES, l2, relative
from test_optim import optimizer_of
from test_predict import rows as predictions
from test_resume import KILLED, KILLER, SMALL
from test_robustness import SHALLOW, calibrated
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from utils.common.distributed import Ranks
from utils.common.randomness import configure_torch
from utils.data.loading import Reading, training_loader, validation_loader
from utils.data.splits import open_data
from utils.data.transforms import TrainTransform, ValTransform
from utils.runs.folder import LAST
from utils.training.engine import Trainer
from utils.training.optim import start_momentum
from utils.training.precision import Precision

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """Without a GPU they fail, as they were asked for. What they choose of torch does not outlast them."""
    assert torch.cuda.is_available(), "these tests need a CUDA GPU"
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "images", 32)


def losses(folder: Path) -> list[float]:
    return [row["Train Loss"] for row in log_rows(folder / "log.txt")]


@pytest.mark.parametrize("name", NAMES)
def test_goldens_in_float64(name: str) -> None:
    manifest = load_manifest(name)
    net = fill(create_model(name).double(), manifest).to(GPU)
    with torch.no_grad():
        logits = net.eval()(golden_input(2024, 2).to(GPU))
    assert logits.argmax(1).tolist() == manifest["golden"]["eval"]["argmax"]
    assert relative(l2([logits]), manifest["golden"]["eval"]["logits_l2"]) < 1e-10
    golden, labels = manifest["golden"]["train"], torch.tensor(manifest["golden"]["train"]["labels"])
    loss = F.cross_entropy(net.train()(golden_input(2025, 4).to(GPU)), labels.to(GPU))
    loss.backward()
    assert relative(float(loss.detach()), golden["loss"]) < 1e-9
    assert relative(l2([p.grad for p in net.parameters() if p.grad is not None]), golden["grad_l2"]) < 1e-6


def loss_and_gradient(
    name: str, precision: Precision, layout: torch.memory_format = torch.contiguous_format
) -> tuple[float, Tensor]:
    """Of a net as it is after a batch, in training: the loss of 16 images, all gradients in a row."""
    torch.manual_seed(0)
    net = calibrated(create_model(name, num_classes=5)).train().to(GPU, memory_format=layout)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    images = torch.randn(16, 3, 64, 64, device=GPU).to(memory_format=layout)
    model = precision.prepare(net, optimizer)
    loss = F.cross_entropy(precision.forward(model, images), torch.arange(16, device=GPU) % 5)
    precision.backward(loss, optimizer)
    precision.unscale(optimizer)
    gradient = torch.cat([p.grad.flatten().float() for p in net.parameters() if p.grad is not None])
    return float(loss.detach()), gradient


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_every_family_in_every_precision(name: str, level: str) -> None:
    """The same loss, and nothing overflows; that the gradients are right, float64 says above.

    Their direction is that of float32 as far as deep nets on small images allow: on a CPU too, a ResNet-50
    keeps a cosine of 0.7 in float16 and of 0.1 in bfloat16.
    """
    torch.backends.cudnn.allow_tf32 = False
    loss, gradient = loss_and_gradient(name, Precision())
    for half, error, cosine in ((torch.float16, 0.03, 0.5), (torch.bfloat16, 0.2, 0.0)):
        for layout in (torch.contiguous_format, torch.channels_last):
            precision = Precision(level, half, level != "O3", 128.0, "cuda")
            found, direction = loss_and_gradient(name, precision, layout)
            assert found == pytest.approx(loss, rel=error), (half, layout)
            assert torch.isfinite(direction).all(), (half, layout)
            assert F.cosine_similarity(direction, gradient, dim=0) > cosine, (half, layout)


def steps(name: str) -> dict[str, Tensor]:
    """The state of a net after three of imagenet_fast.py's default steps, with the regularizer."""
    configure_torch(deterministic=True, seed=0)
    net = create_model(name, num_classes=5).to(GPU)
    optimizer = optimizer_of(net, lam=1e-3, shift=1e-3, nowd_conv=True)
    start_momentum(optimizer)  # the first step overflows
    precision = Precision("O2", torch.float16, True, "dynamic", "cuda")
    model = precision.prepare(net.train(), optimizer)
    generator = torch.Generator(GPU).manual_seed(1)
    for _ in range(3):
        images = torch.randn(16, 3, 64, 64, device=GPU, generator=generator)
        loss = F.cross_entropy(precision.forward(model, images), torch.arange(16, device=GPU) % 5)
        precision.backward(loss, optimizer)
        precision.unscale(optimizer)
        precision.step(optimizer)
        optimizer.zero_grad()
    return net.state_dict()


@pytest.mark.parametrize("name", SHALLOW)
def test_every_family_is_deterministic(name: str) -> None:
    """Nothing is without a deterministic algorithm, and none differs from run to run."""
    first, again = steps(name), steps(name)
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_the_regularizers_steps_are_a_cpus() -> None:
    found = []
    for device in (torch.device("cpu"), GPU):
        torch.manual_seed(0)
        net = create_model("ws_resnet18", num_classes=5).to(device)
        optimizer = optimizer_of(net, lam=1.0, shift=1e-3, nowd_conv=True)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
            optimizer.step()
        found.append([parameter.detach().cpu() for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_prefetched_batches_are_a_cpus(pictures: Path) -> None:
    """Also when the computation on a batch is still going on while later ones arrive in reused memory."""
    reading = Reading(workers=2, max_bad=0.0)
    splits = open_data(str(pictures), evaluate=False)
    assert splits.train is not None
    busy = torch.randn(2048, 2048, device=GPU)
    found = []
    for device in (torch.device("cpu"), GPU):
        ranks = Ranks(device=device)
        training = training_loader(splits.train, TrainTransform(32), 8, 1, reading, ranks)
        batches = []
        for loader in (training, validation_loader(splits.val, ValTransform(32), 4, reading, ranks)):
            for images, labels in loader:
                assert images.device == labels.device == device
                if device.type == "cuda":
                    for _ in range(20):
                        busy = busy @ busy / 50
                batches.append((images + 0, labels + 0))
                del images, labels
        found.append([(images.cpu(), labels.cpu()) for images, labels in batches])
    assert len(found[0]) == len(found[1]) == 12 + 6
    for (images, labels), (others, their_labels) in zip(*found, strict=True):
        assert torch.equal(labels, their_labels)
        assert torch.allclose(images, others, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_moves_between_gpu_and_cpu(script: str, call: Run, pictures: Path, tmp_path: Path) -> None:
    rate = 0.005 if script == "imagenet.py" else 0.08  # the others scale it by the batch, 16/256
    flags = ("-a", "se_resnet18", "--data", pictures, "--img-size", 32, "--train-batch", 16, "--lr", rate)
    result = call(*flags, "--manualSeed", 1, "--epochs", 4, "-c", "out", "-j", 2, script=script)
    assert result.returncode == 0, result.stderr
    assert torch.cuda.get_device_name() in result.stdout
    level = "O2 (float16, float32 batch norm, loss scale dynamic)"  # by default, but in imagenet.py
    assert (level in result.stdout) == (script != "imagenet.py")
    assert losses(tmp_path / "out")[-1] < 0.8 * losses(tmp_path / "out")[0]

    saved = ("-e", "--resume", "out/checkpoint.pth.tar")
    lines = [call(*flags, *saved, "--device", device, script=script).stdout for device in ("cuda", "cpu")]
    pattern = r"Test Loss: +([\d.]+), Test Acc: +([\d.]+), Top-5 Acc: +([\d.]+)"
    on_gpu, on_cpu = (list(map(float, re.findall(pattern, line)[0])) for line in lines)
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=0.02)
    assert on_gpu[1:] == pytest.approx(on_cpu[1:], abs=5)  # one of 21 images

    onward = ("--resume", "out/checkpoint.pth.tar", "--device", "cpu", "--epochs", 5, "-c", "cpu")
    result = call(*flags, *onward, script=script)
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "cpu")) == 5
    back = ("--resume", "cpu/checkpoint.pth.tar", "--epochs", 6, "-c", "gpu")
    result = call(*flags, *back, script=script)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "gpu")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.parametrize(
    "flags",
    [
        ("--opt-level", "O0", "--ema", 0.9),
        ("--opt-level", "O1", "--compile"),
        ("--opt-level", "O1", "--amp-dtype", "bfloat16", "--channels-last", "--accum-steps", 2),
        ("--opt-level", "O2", "--channels-last", "--nowd-conv", "--el2", "--clip-grad", 1, "--sync-bn"),
        ("--opt-level", "O2", "--loss-scale", 128, "--no-keep-batchnorm-fp32", "--compile"),
        ("--opt-level", "O3", "--keep-batchnorm-fp32", "--cutmix", "--mixup"),
        ("--teacher", "resnet18:teacher.pth.tar", "--on-nan", "skip"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_fast_learns(flags: tuple[object, ...], call: Run, pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = {"arch": "resnet18", "state_dict": create_model("resnet18", num_classes=3).state_dict()}
    torch.save(teacher, tmp_path / "teacher.pth.tar")
    common = ("-a", "sge_resnet18", "--data", pictures, "--img-size", 64, "--train-batch", 16, "--epochs", 6)
    result = call(*common, *flags, "--lr", 0.1, "--manualSeed", 1, "-c", "out", script="imagenet_fast.py")
    assert result.returncode == 0, result.stderr
    assert min(losses(tmp_path / "out")[3:]) < losses(tmp_path / "out")[0]
    assert "GiB" in call(*common, *flags, "--dry-run", script="imagenet_fast.py").stdout


@pytest.mark.parametrize("script", KILLED)
def test_killed_at_any_moment(start: Callable[..., Job], script: str, pictures: Path) -> None:
    """In the precision that is the default on a GPU; each process has a CUDA context of its own."""
    _, flags = KILLED[script]
    given = (*SMALL, "--data", "images", "--epochs", 2, "--save-every", 1, "--deterministic", *flags)
    result = start(KILLER, script, "--kills", 4, "--rest", *given).complete()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["differing"] == []


@pytest.mark.parametrize("ahead", [1, 16])
@pytest.mark.parametrize("bad", [3, 4])
def test_a_skipped_step_leaves_no_trace(images: Path, bad: int, ahead: int) -> None:
    torch.backends.cudnn.deterministic = True
    assert_no_trace(images, bad, Ranks(device=GPU), ahead)


def test_no_step_waits_for_the_gpu(call: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one look of the host to the next; torch says what would."""
    step = Trainer._step

    def strict(*args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", strict)
    flags = ("-a", "resnet18", "--data", pictures, "--img-size", 32, "--train-batch", 16, "--epochs", 2)
    tricks = (
        "--mixup",
        "--cutmix",
        "--ema",
        "--clip-grad",
        1,
        "--nowd-conv",
        "--el2",
        "--label-smoothing",
        0.1,
    )
    for level in ("O0", "O1", "O2"):
        result = call(*flags, *tricks, "--opt-level", level, "-c", level, script="imagenet_fast.py")
        assert result.returncode == 0, result.stderr


def launches(function: Callable[[], object]) -> int:
    """Kernels that a call launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)


def test_few_kernels_are_launched() -> None:
    """What tests on a CPU count as one foreach operation takes a GPU a few, not one for each weight."""
    net = create_model("ws_resnet50").to(GPU)
    optimizer = optimizer_of(net, lam=1.0, shift=1e-3, nowd_conv=True)
    start_momentum(optimizer)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert launches(optimizer.step) < 120  # layer by layer 230
    images = torch.randn(2, 3, 64, 64, device=GPU)
    counts = []
    for level in ("O0", "O2"):
        precision = Precision(level, torch.float16, device="cuda")
        model = precision.prepare(net)

        def step(precision: Precision = precision, model: nn.Module = model) -> None:
            precision.backward(precision.forward(model, images).sum(), optimizer)

        step()
        counts.append(launches(step))
    assert counts[1] - counts[0] < 60  # weight by weight 113


def test_too_little_memory(call: Run, pictures: Path) -> None:
    flags = ("-a", "resnet18", "--data", pictures, "--img-size", 224, "--train-batch", 96)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        result = call(*flags, script="imagenet_fast.py")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert_one_line_error(result, "too little memory", "--train-batch")


def test_what_has_no_deterministic_form(call: Run, pictures: Path) -> None:
    flags = ("-a", "alexnet", "--img-size", 224, "--data", pictures, "--train-batch", 16, "--deterministic")
    for script in SCRIPTS:
        error = "--deterministic: on this device torch has no such adaptive_avg_pool2d_backward_cuda"
        assert_one_line_error(call(*flags, script=script), error)


def test_more_gpus_than_there_are(call: Run, launch: Run, pictures: Path) -> None:
    count = torch.cuda.device_count()
    flags = ("-a", "mobilenetv1", "--img-size", 32, "--data", pictures)
    assert_one_line_error(call(*flags, "--gpu-id", count), f"from 0 to {count - 1} here")
    assert_one_line_error(call(*flags, "--gpu-id", "0,0"), "name each GPU at most once")
    result = launch("imagenet_fast.py", *flags, processes=count + 1)
    assert result.returncode != 0
    assert f"for process {count + 1}; start fewer processes, or use --device cpu" in result.stderr


SHARED = """
import torch
from torch import distributed
import imagenet_fast
from utils.command_line import cli
import utils.common.distributed
utils.common.distributed.process_device = lambda *_: torch.device("cuda", 0)
begin = distributed.init_process_group
distributed.init_process_group = lambda backend, **rest: begin("gloo", **rest)  # NCCL wants a GPU for each
cli.run(imagenet_fast.main)
"""


def test_two_processes(launch: Run, call: Run, pictures: Path, tmp_path: Path) -> None:
    """They share a GPU, so gloo carries the gradients: all of a job but NCCL."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    net = (*SMALL[2:], "-a", "ws_resnet18", "--nowd-conv", "--el2", "--sync-bn", "--lr", 0.02)
    flags = (*net, "--data", pictures, "--epochs", 2, "--test-batch", 4, "--opt-level", "O0")
    result = launch(script, *flags, "--train-batch", 8, "-c", "two")
    assert result.returncode == 0, result.stderr
    assert "2 processes, each on 1 x" in result.stdout
    assert call(*flags, "--train-batch", 16, "-c", "one", script="imagenet_fast.py").returncode == 0
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=0.02)
    result = launch(script, *flags, "--train-batch", 8, "-c", "half", "--opt-level", "O2")
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "half")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=0.1)


def test_predictions_are_a_cpus(call: Run, images: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path).rename(tmp_path / "net.pth.tar")
    flags = ("--resume", "net.pth.tar", images / "valf", "--device")
    on_gpu, on_cpu = (
        predictions(call(*flags, device, "-j", 0, script="scripts/predict.py").stdout)
        for device in ("cuda", "cpu")
    )
    assert len(on_gpu) == len(on_cpu) == 3 * 21
    likeliest, expected = (
        {row["path"]: float(row["probability"]) for row in found if row["rank"] == "1"}
        for found in (on_gpu, on_cpu)
    )
    assert likeliest == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "cascade_rcnn"])
def test_detection(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str) -> None:
    """In half precision it learns; with deterministic algorithms a resumed run is the uninterrupted one."""
    monkeypatch.setattr("detection.heads.HIDDEN", 64)
    write_coco(tmp_path / "coco", "train2017", 20)
    write_coco(tmp_path / "coco", "val2017", 3, seed=1)
    flags = (*SMALL_COCO, "--model", detector, "--epochs", 2, "--warmup-steps", 4, "--lr", 0.08, "-j", 0)
    script = "detection/train.py"
    result = call(*flags, "-c", "run", script=script)
    assert result.returncode == 0, result.stderr
    assert "O1 (float16" in result.stdout
    assert losses(tmp_path / "run")[-1] < 0.8 * losses(tmp_path / "run")[0]

    exact = (*flags, "--deterministic", "--save-every", 6, "--keep", 9)
    result = call(*exact, "-c", "whole", script=script)
    assert result.returncode == 0, result.stderr
    middle = tmp_path / "whole" / "checkpoint-0001-0000012.pth.tar"
    result = call(*exact, "-c", "rest", "--resume", middle, script=script)
    assert result.returncode == 0, result.stderr
    assert_same(state(tmp_path / "rest" / LAST), state(tmp_path / "whole" / LAST))


def test_benchmarks(call: Run) -> None:
    """They run, and say which GPU."""
    for arguments in (
        ("model", "sge_resnet18", "--baseline", "resnet18", "--precision", "fp16", "--channels-last"),
        ("step", "sge_resnet18", "--opt-level", "O2"),
        ("optimizer", "--arch", "ws_resnet18"),
    ):
        result = call(*arguments, "--rounds", 2, script="scripts/benchmark.py")
        assert result.returncode == 0, result.stderr
        assert torch.cuda.get_device_name() in result.stdout
