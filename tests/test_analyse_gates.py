"""scripts/analyse_gates.py: the figures are those of the recorded gates, whatever the batches."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, assert_one_line_error, write_classes
from tiny_net import TinyNet, tiny_gated
from torch import Tensor, nn

from models import create_model
from models.gates import add_gates
from scripts.analyse_gates import choose_images
from scripts.lib import grad_cam
from scripts.lib.gates_draw import draw
from scripts.lib.gates_families import Seen
from scripts.lib.gates_record import Gate, record
from scripts.lib.gates_statistics import HIGH, LOW, Collected, Statistics
from scripts.lib.gates_statistics_draw import draw_classes, draw_depth
from utils.data.splits import ImageSplit
from utils.runs.folder import save

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture
def analyse(call: Run) -> Run:
    """The script within this process."""
    return lambda *arguments: call(*arguments, "-j", 0, script="scripts/analyse_gates.py")


def gate(values: Tensor, bounded: bool = True) -> Gate:
    return Gate("layer1.0.se", 1, "out = x * gate", Seen("gate", values, bounded))


def counted(values: Tensor, labels: Tensor, bounded: bool = True) -> Statistics:
    """Counted in two batches of different sizes."""
    one = Statistics(gate(values[:1], bounded), 3)
    one.add(values[:3], labels[:3])
    if len(values) > 3:
        one.add(values[3:], labels[3:])
    return one


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2)])
def test_the_figures(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values, labels = torch.rand(20, *shape), torch.randint(2, (20,))
    one = counted(values, labels)
    maps = values.double().reshape(20, shape[0], -1).numpy()
    for kind in (None, 0, 1):
        own = maps if kind is None else maps[labels == kind]
        found, means = one.summary(kind), own.mean(2)
        assert found.images == len(own)
        assert np.allclose(one.means(kind), means.mean(0))
        expected = (
            means.mean(),
            means.mean(0).std(),
            means.std(0).mean(),
            np.sqrt(own.var(2).mean(1)).mean(),
            (own < LOW).mean(),
            (own > HIGH).mean(),
            own.min(),
            own.max(),
        )
        assert found[1:] == pytest.approx(expected)
    assert counted(values, labels, bounded=False).summary()[5:7] == (None, None)


def test_what_the_class_says() -> None:
    """None of it where values are drawn without it, all where they are the class's, a share in between."""
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    noise, of_class = torch.randn(600, 8), torch.randn(3, 8)[labels]
    found = [counted(values, labels).between_classes() for values in (noise, of_class, of_class + noise)]
    assert found[0] == pytest.approx(0, abs=0.01)
    assert found[1] == pytest.approx(1)
    signal = float(of_class.var(0, correction=0).mean())
    assert found[2] == pytest.approx(signal / (signal + 1), abs=0.05)
    assert counted(noise, labels * 0).between_classes() is None  # one class
    assert counted(noise * 0 + 0.5, labels).between_classes() is None  # a constant
    assert counted(noise[:3], labels[:3]).between_classes() is None  # an image each


class Plain(nn.Module):
    """A user's gate without a sigmoid."""

    is_gate = True

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("cbam", "standard"),
        ("gc", "pre"),
        ("simam", "post"),
        ("eca", "identity"),
        ("se", "stage"),
        (Plain, "conv"),
    ],
)
def test_any_gate_at_any_place(kind: str | type[nn.Module], at: str) -> None:
    net = add_gates(create_model("resnet18", num_classes=3), kind, at=at, stages=[2, 3]).eval()
    collected = Collected(CLASSES)
    recorded = record(net, torch.randn(3, 3, 32, 32))
    collected.add([one for one in recorded.shown if isinstance(one, Gate)], torch.tensor([0, 1, 1]))
    rows = list(collected.rows())
    assert {row["stage"] for row in rows} == {2, 3}
    assert {row["place"] for row in rows} == ({at} if at != "stage" else {"post"})
    assert {row["class"] for row in rows} == {"all", "cat", "dog"}
    if kind is Plain:
        means = [float(str(row["mean"])) for row in rows if row["gate"] == "ratio, by channel"]
        assert means == [pytest.approx(0.5, abs=1e-5)] * len(means)


def test_what_is_drawn() -> None:
    torch.manual_seed(0)
    collected = Collected(CLASSES)
    collected.add([gate(torch.rand(30, 128) ** 8)], torch.arange(30) % 3)
    (one,) = collected.gates.values()
    figure = draw_classes([one], collected, [0, 2], "title $")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["all images", "cat", "owl"]
    channels = np.linspace(0, 127, 50).round().astype(int)
    assert np.allclose(axes.lines[2].get_ydata(), one.means(2).numpy()[channels])
    assert axes.get_xlabel() == "50 of 128 channels, evenly spaced"
    _, middle, below = draw_depth(collected, "title").axes
    low, high = (patch.get_height() / 100 for patch in middle.patches)
    assert (low, high) == pytest.approx(one.summary()[5:7])
    assert below.patches[0].get_height() == pytest.approx(100 * (one.between_classes() or 0))


def test_the_first_images_of_each_class() -> None:
    samples = [(f"{label}{number}", label) for label in (0, 2) for number in range(3)]
    found = choose_images(ImageSplit(samples, ("a", "b", "c")), 2)
    assert found.samples == [("00", 0), ("01", 0), ("20", 2), ("21", 2)]


def write_net(folder: Path) -> Path:
    state = {"state_dict": tiny_gated(num_classes=3).state_dict(), "arch": "tiny_gated", "classes": CLASSES}
    return save({**state, "epoch": 1, "images": 0, "arguments": {"img_size": 32}}, folder)


def test_the_command(analyse: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "data", 1)
    flags = ("--resume", write_net(tmp_path), "--data", "data")
    result = analyse(*flags, "--images", 5, "--test-batch", 4, "--classes", "owl", "cat", "-o", "out/gates")
    assert result.returncode == 0, result.stderr
    files = ["gates.csv", "channels.csv", "classes.png", "depth.png"]
    assert result.stdout == f"wrote out/gates/: 2 gates on 15 images of 3 classes; {', '.join(files)}\n"
    with (tmp_path / "out/gates/gates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    assert [row["class"] for row in rows[:4]] == ["all", *CLASSES]
    assert {row["images"] for row in rows} == {"15", "5"}
    with (tmp_path / "out/gates/channels.csv").open(newline="") as file:
        channels = list(csv.DictReader(file))
    first = [
        float(row["mean"]) for row in channels if row["gate"] == "channel gate" and row["class"] == "all"
    ]
    assert np.mean(first) == pytest.approx(float(rows[0]["mean"]), rel=1e-4)
    assert {row["class"] for row in channels} == {"all", "owl", "cat"}


def test_bad_input(analyse: Run, tmp_path: Path) -> None:
    write_classes(tmp_path / "data", 1)
    saved = write_net(tmp_path)
    flags = ("--resume", saved, "--data", "data")
    message = "--classes cow: no class folder of --data with images; there are cat, dog, owl"
    assert_one_line_error(analyse(*flags, "--classes", "cat", "cow"), message)
    assert_one_line_error(analyse("--resume", saved, "--data", "nowhere"), "--data nowhere: no such folder")
    for path in (tmp_path / "data" / "val").glob("*/*"):
        path.write_text("no image")
    assert_one_line_error(analyse(*flags), "no image of --data can be decoded")
    plain = {"state_dict": TinyNet(num_classes=3).state_dict(), "arch": "tiny", "epoch": 1}
    torch.save(plain, tmp_path / "plain.pth.tar")
    write_classes(tmp_path / "data2", 1)
    result = analyse("--resume", "plain.pth.tar", "--data", "data2", "--img-size", 32)
    assert_one_line_error(result, "no attention to draw")


def test_long_titles_stay_within_the_pictures() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    collected = Collected(CLASSES)
    collected.add([gate(torch.rand(6, 8))], torch.arange(6) % 3)
    (one,) = collected.gates.values()
    title = "resnet18 --gate sge, " + "checkpoints/of/a/long/name" * 12
    image, cam = torch.rand(3, 32, 32), grad_cam.Cam("layer4", torch.zeros(1, 3), 0, torch.rand(4, 4))
    for figure in (
        draw_classes([one], collected, [0], title),
        draw_depth(collected, title),
        draw(image, [gate(torch.rand(1, 8))], title, "text"),
        grad_cam.draw_cams(image, [grad_cam.Seen("resnet18", "cat", cam)], title),
    ):
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        (text,) = [text for text in figure.findobj(Text) if text.get_text().startswith("resnet18 --gate")]
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_a_share_that_is_unknown_is_said() -> None:
    collected = Collected(CLASSES)
    collected.add([gate(torch.full((6, 8), 0.5))], torch.arange(6) % 3)
    below = draw_depth(collected, "title").axes[2]
    assert [text.get_text().partition(":")[0] for text in below.texts] == ["no share"]
