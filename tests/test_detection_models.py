"""The networks of detection/: what torchvision has they compute as it does, what it lacks as published."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from detection.backbone import Backbone, create_backbone, list_backbones, stages
from detection.detectors import CASCADE, DETECTORS, create_detector
from detection.heads import BoxStage, StagedHeads
from detection.recipes import GPUS, RECIPES
from models import create_model, is_own, list_models, resolve
from utils.common.errors import UserError

IMAGES = ((64, 112), (72, 64))  # heights and widths; the first is longer than the detectors take


def small_detector(name: str, arch: str = "resnet18", classes: int = 5) -> Any:
    """For images of about 64 pixels, with few samples and proposals."""
    detector = create_detector(name, create_backbone(arch, None, False), classes, min_size=64, max_size=96)
    shrink(detector.rpn, *detector.roi_heads.stages)
    return detector


def shrink(proposals: Any, *heads: Any) -> None:
    for number in (proposals._pre_nms_top_n, proposals._post_nms_top_n):
        number.update(training=60, testing=60)
    for head in heads:
        head.fg_bg_sampler.batch_size_per_image = 24
        head.detections_per_img = 10


def batch(boxes: tuple[int, ...] = (2, 1)) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images with so many boxes each."""
    images = [torch.rand(3, *size) for size in IMAGES]
    every = torch.tensor([[5.0, 8, 40, 50], [20, 4, 60, 30]])
    targets = [
        {
            "boxes": every[:count],
            "labels": torch.tensor([1, 3])[:count],
            "masks": (torch.rand(count, *size) > 0.5).to(torch.uint8),
        }
        for count, size in zip(boxes, IMAGES, strict=True)
    ]
    return images, targets


# Against torchvision


def torchvisions(name: str, arch: str, ours: Any) -> Any:
    """torchvision's detector with our settings of proposals and our weights."""
    body = {"resnet18": resnet18, "resnet50": resnet50}[arch](norm_layer=FrozenBatchNorm2d)
    width = body.fc.in_features
    levels = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, levels, [width // 8, width // 4, width // 2, width], 256)
    build = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}[name]
    theirs = build(backbone, num_classes=5, min_size=64, max_size=96)
    shrink(theirs.rpn, theirs.roi_heads)
    renamed = {}
    for key, value in ours.state_dict().items():
        key = key.replace("roi_heads.stages.0.", "roi_heads.").replace("roi_heads.mask.", "roi_heads.mask_")
        if not key.endswith("num_batches_tracked"):
            renamed[key] = value
    theirs.load_state_dict(renamed)
    return theirs


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("faster_rcnn", "resnet18"),
        pytest.param("mask_rcnn", "resnet18", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "resnet50", marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_losses_and_detections_are_torchvisions(name: str, arch: str) -> None:
    torch.manual_seed(0)
    ours = small_detector(name, arch)
    for module in ours.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (*module.parameters(), *module.buffers()):
                value.data = torch.rand(value.shape) / 2 + 0.3
    nn.init.normal_(ours.roi_heads.stages[0].box_predictor.bbox_pred.weight, std=0.1)
    ours.roi_heads.stages[0].box_beta = 1 / 9
    theirs = torchvisions(name, arch, ours)
    images, targets = batch()
    images = [image.double() for image in images]

    results = []
    for detector in (ours, theirs):
        torch.manual_seed(1)  # of the sampling
        losses = detector.double().train()(images, targets)
        with torch.no_grad():
            results.append((losses, detector.eval()(images)))
    (our_losses, our_detections), (their_losses, their_detections) = results
    torch.testing.assert_close(our_losses, their_losses)
    assert all(len(found["boxes"]) > 0 for found in our_detections)
    torch.testing.assert_close(our_detections, their_detections)


def test_the_box_loss_turns_linear_at_one_and_is_of_the_right_class() -> None:
    stage = BoxStage(channels=1, classes=3)
    offsets = torch.zeros(3, 3, 4)
    offsets[0, 2] = torch.tensor([0.5, -0.9, 1.5, -3.0])  # of the labelled class
    offsets[0, 1] = offsets[1] = 100.0  # of another class, of background
    labels, goals = [torch.tensor([2, 0]), torch.tensor([0])], [torch.zeros(2, 4), torch.zeros(1, 4)]
    logits = torch.tensor([[0.0, 0, 0], [math.log(2), 0, 0], [0, 0, 0]])
    classification, boxes = stage.losses(logits, offsets.flatten(1), labels, goals)
    assert boxes.item() == pytest.approx((0.125 + 0.405 + 1.0 + 2.5) / 3)
    assert classification.item() == pytest.approx((math.log(3) + math.log(2) + math.log(3)) / 3)


# The backbone

# One of every residual family, and its modules whose outputs are c2 to c5.
LAYERS = ("layer1", "layer2", "layer3", "layer4")
FAMILIES = {
    **dict.fromkeys(("resnet18", "se_resnet18", "cbam_resnet18", "gc_resnet18", "sge_resnet18"), LAYERS),
    **dict.fromkeys(("srm_resnet18", "ws_resnet18", "oct_resnet26", "sk_resnet18", "sknet50"), LAYERS),
    **dict.fromkeys(("resnet50_b", "resnet50_c", "resnet50_d", "resnext50_32x4d"), LAYERS),
    "bam_resnet18": ("bam1", "bam2", "bam3", "layer4"),
}


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_pyramid_stands_on_the_stages_of_the_classification_net(arch: str) -> None:
    torch.manual_seed(0)
    net = create_model(arch, num_classes=2).eval()
    seen: list[Tensor] = []
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for name in FAMILIES[arch]
    ]
    image = torch.rand(1, 3, 72, 64)
    with torch.no_grad():
        net(image)
        for hook in hooks:
            hook.remove()
        backbone = Backbone(net).eval()
        torch.testing.assert_close(stages(net, image), tuple(seen))
        levels = backbone(image)
        torch.testing.assert_close(levels, dict(backbone.fpn({str(i): c for i, c in enumerate(seen)})))
    assert list(levels) == ["0", "1", "2", "3", "pool"]
    assert {level.shape[1] for level in levels.values()} == {backbone.out_channels}


@pytest.mark.parametrize("arch", ["sge_resnet18", "bam_resnet18", "resnet50_d"])
def test_what_a_training_step_changes(arch: str) -> None:
    """Statistics never, stem and first stage never, everything else."""
    torch.manual_seed(0)
    backbone = create_backbone(arch, None, False)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().mean() for level in backbone.train()(torch.rand(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}

    statistics = {key for key, _ in backbone.named_buffers()}
    norms = {name for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    trained = tuple(f"body.layer{i}." for i in (2, 3, 4))
    assert not changed & statistics
    assert not {key for key in changed if key.startswith(("body.conv1", "body.bn1", "body.layer1"))}
    for name in norms:
        if name.startswith(trained):
            assert {f"{name}.weight", f"{name}.bias"} & changed, name
    assert {key for key in before if key.startswith("fpn.")} <= changed


def test_normalisation_uses_the_statistics_of_the_checkpoint_in_training() -> None:
    backbone = create_backbone("sge_resnet18", None, False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone.train()(images), backbone.eval()(images))


@pytest.mark.slow
def test_every_backbone_has_the_four_stages() -> None:
    of_all_files = [name for name in list_models() if is_own(name)]
    for name in {*of_all_files, *list_backbones()}:
        if "101" in name or "152" in name or resolve(name) != name:
            continue  # as the smaller ones of its family
        with torch.device("meta"):
            net = create_model(name)
        assert all(hasattr(net, layer) for layer in LAYERS) == (name in list_backbones()), name


@pytest.mark.parametrize("arch", ["mobilenetv1", "shufflenetv2_1x", "densenet121", "vgg11", "oct_mobilenet"])
def test_nets_without_stages_are_refused(arch: str) -> None:
    with pytest.raises(UserError, match=rf"^-a {arch} has no stages .*possible are .*sge_resnet50$"):
        create_backbone(arch, None, True)


def test_a_published_classification_checkpoint_starts_the_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = create_model("se_resnet18", num_classes=7).state_dict()
    saved = {"epoch": 100, "state_dict": {f"module.{key}": value for key, value in weights.items()}}
    torch.save(saved, tmp_path / "published.pth.tar")
    body = create_backbone("se_resnet18", str(tmp_path / "published.pth.tar"), False).body.state_dict()
    assert set(weights) - set(body) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, weights[key]) for key, value in body.items())
    said = capsys.readouterr().out
    assert "published.pth.tar" in said
    assert said.endswith("not used from the file: fc.weight, fc.bias\n")


def test_the_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cbam.pth.tar"
    torch.save(
        {"arch": "cbam_resnet18", "state_dict": create_model("cbam_resnet18", num_classes=3).state_dict()},
        path,
    )
    with pytest.raises(UserError, match=r"^--backbone .*cbam\.pth\.tar does not fit .* -a cbam_resnet18$"):
        create_backbone("sge_resnet18", str(path), False)


def test_a_detector_is_no_classification_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "detector.pth.tar"
    torch.save({"state_dict": small_detector("faster_rcnn").state_dict()}, path)
    with pytest.raises(
        UserError, match=r"^--backbone .*detector\.pth\.tar holds a whole detector: .*--resume"
    ):
        create_backbone("resnet18", str(path), False)


def test_torchvisions_weights_start_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: weights)
    body = create_backbone("resnet18", None, True).body.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in body.items())


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"^--pretrained: the weights of resnet18 cannot .*: no route$"):
        create_backbone("resnet18", None, True)
    with pytest.raises(
        UserError, match=r"^--pretrained: there are no weights of sge_resnet18 .* --backbone$"
    ):
        create_backbone("sge_resnet18", None, True)
    with pytest.raises(UserError, match=r"^--backbone FILE and --pretrained"):
        create_backbone("resnet18", "file.pth", True)


# The detectors


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mask_rcnn" else pytest.mark.slow) for name in DETECTORS]
)
def test_training_with_and_without_objects(name: str) -> None:
    """Every trained parameter gets a gradient each time: processes that train together wait for all."""
    torch.manual_seed(0)
    detector = small_detector(name).train()
    keys = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    keys |= {"loss_mask"} if name == "mask_rcnn" else set()
    for boxes in ((2, 1), (2, 0), (0, 0)):
        losses = detector(*batch(boxes))
        assert set(losses) == keys
        assert all(loss.isfinite() for loss in losses.values())
        assert (losses["loss_box_reg"] > 0) == (sum(boxes) > 0)
        detector.zero_grad()
        sum(losses.values()).backward()
        for key, parameter in detector.named_parameters():
            assert not parameter.requires_grad or parameter.grad is not None, key


@pytest.mark.slow  # where a CPU has no bfloat16
@pytest.mark.parametrize("name", DETECTORS)
def test_autocast_leaves_boxes_in_full_precision(name: str) -> None:
    torch.manual_seed(0)
    detector = small_detector(name)
    images, targets = batch()
    seen: list[Tensor] = []
    mask = [detector.roi_heads.mask] if name == "mask_rcnn" else []
    for module in (detector.rpn.head, *detector.roi_heads.stages, *mask):
        module.register_forward_hook(lambda _module, _inputs, output: seen.extend(tree_leaves(output)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images, targets)
        with torch.no_grad():
            found = detector.eval()(images)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert {value.dtype for value in (*seen, *losses.values())} == {torch.float32}
    for image, size in zip(found, IMAGES, strict=True):
        boxes = image["boxes"]
        assert len(boxes) > 0
        assert (boxes != boxes.bfloat16()).any()
        assert image.keys() == {"boxes", "scores", "labels", *(["masks"] if name == "mask_rcnn" else [])}
        assert image.get("masks", torch.zeros(0, 1, *size)).shape[1:] == (1, *size)


@pytest.mark.slow  # where a CPU has no bfloat16
def test_autocast_leaves_anchors_in_full_precision() -> None:
    """Beyond 256 pixels bfloat16 cannot hold an odd coordinate."""
    backbone = create_backbone("resnet18", None, False).eval()
    detector = create_detector("faster_rcnn", backbone, 5)
    images = torch.rand(1, 3, 64, 512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        levels = list(backbone(images).values())
    batched = ImageList(images, [(64, 512)])
    (anchors,) = detector.rpn.anchor_generator(batched, levels)
    assert 512 - 4 - 23 in anchors[:, 0].tolist()


def test_two_thousand_proposals_at_test_too() -> None:
    torch.manual_seed(0)
    detector = create_detector("faster_rcnn", create_backbone("resnet18", None, False), 5).eval()
    images = torch.rand(1, 3, 384, 384)
    with torch.no_grad():
        proposals, _ = detector.rpn(ImageList(images, [(384, 384)]), detector.backbone(images))
    assert [len(boxes) for boxes in proposals] == [2000]


def test_what_counts_as_a_detection() -> None:
    """A score above 0.05, and one of the best 100."""
    stage = BoxStage(1, 3)
    corner = torch.arange(150.0)[:, None] * 10
    boxes = torch.cat((corner, corner, corner + 8, corner + 8), 1)
    logits = torch.tensor([0.9, 0.06, 0.04]).log().repeat(150, 1)
    (found,) = stage.detect(logits, torch.zeros(150, 12), [boxes], [(2000, 2000)])
    assert found["labels"].tolist() == [1] * 100


def test_the_outputs_start_as_in_fast_rcnn() -> None:
    outputs = BoxStage(1, 81).box_predictor
    for layer, std in ((outputs.cls_score, 0.01), (outputs.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize(("name", "columns"), [("faster_rcnn", 81 * 4), ("cascade_rcnn", 4)])
def test_outputs_for_coco(name: str, columns: int) -> None:
    detector = create_detector(name, create_backbone("resnet18", None, False), 81)
    assert len(detector.roi_heads.stages) == (3 if name == "cascade_rcnn" else 1)
    for stage in detector.roi_heads.stages:
        logits, offsets = stage.box_predictor(torch.rand(2, 1024))
        assert (logits.shape, offsets.shape) == ((2, 81), (2, columns))


def test_unknown_detector() -> None:
    with pytest.raises(ValueError, match="'retinanet' is none of faster_rcnn, mask_rcnn, cascade_rcnn"):
        create_detector("retinanet", create_backbone("resnet18", None, False), 81)


def test_recipes() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES) == 12
    for recipe in RECIPES:
        assert recipe.detector in DETECTORS
        assert recipe.arch in list_backbones()
        assert recipe.rate / (GPUS * recipe.images) == pytest.approx(0.02 / 16)
        assert recipe.steps[-1] < recipe.epochs


# The cascade, against sums done by hand: each head gives constant outputs

SIDE = 128  # of the image
TRUTH = (10.0, 10.0, 50.0, 50.0)
IOUS = (0.5, 0.6, 0.7)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = (1.0, 0.5, 0.25)
LOGITS = ((0.0, 1.0, 0.5), (2.0, 0.0, 3.0), (-1.0, 0.5, 0.0))


def constant_cascade(offsets: Any = ((0.0,) * 4,) * 3) -> StagedHeads:
    """A cascade of three classes whose stages give LOGITS and these offsets for every box."""
    heads = StagedHeads([BoxStage(1, 3, True, *settings) for settings in CASCADE])
    for stage, logits, constant in zip(heads.stages, LOGITS, offsets, strict=True):
        for layer, bias in (
            (stage.box_predictor.cls_score, logits),
            (stage.box_predictor.bbox_pred, constant),
        ):
            nn.init.zeros_(layer.weight)
            layer.bias.data = torch.tensor(bias)
    return heads


def run_heads(heads: StagedHeads, *boxes: tuple[float, ...]) -> Any:
    """Losses (in training) or detections of one image with the object TRUTH and these proposals."""
    features = {
        str(i): torch.rand(1, 1, SIDE // stride, SIDE // stride) for i, stride in enumerate((4, 8, 16, 32))
    }
    targets = [{"boxes": torch.tensor([TRUTH]), "labels": torch.tensor([1])}]
    found, losses = heads(features, [torch.tensor(boxes)], [(SIDE, SIDE)], targets)
    return losses if heads.training else found[0]


def offsets_to(truth: tuple[float, ...], box: tuple[float, ...], stds: tuple[float, ...]) -> list[float]:
    """From a box to the truth: centres in units of the box, logarithms of the sides, over stds."""
    (x, y, w, h), (tx, ty, tw, th) = (
        (b[0] + b[2], b[1] + b[3], b[2] - b[0], b[3] - b[1]) for b in (box, truth)
    )
    plain = ((tx - x) / 2 / w, (ty - y) / 2 / h, math.log(tw / w), math.log(th / h))
    return [value / std for value, std in zip(plain, stds, strict=True)]


def moved_by(offsets: tuple[float, ...], box: tuple[float, ...], stds: tuple[float, ...]) -> list[float]:
    """The box that these offsets lead to, clipped to the image."""
    dx, dy, dw, dh = (value * std for value, std in zip(offsets, stds, strict=True))
    w, h = box[2] - box[0], box[3] - box[1]
    x, y, w, h = (
        (box[0] + box[2]) / 2 + dx * w,
        (box[1] + box[3]) / 2 + dy * h,
        w * math.exp(dw),
        h * math.exp(dh),
    )
    return [min(max(v, 0), SIDE) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]


def smooth(value: float) -> float:
    return value**2 / 2 if abs(value) < 1 else abs(value) - 0.5


def cross_entropy(logits: tuple[float, ...], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("surplus", "positive"), [(10, 3), (20, 2), (30, 1), (48, 0)])
def test_losses_of_the_cascade(surplus: float, positive: int, transpose: bool) -> None:
    """One proposal, too wide or too tall: an object to the first stages, background to the stricter ones.

    A stage has two samples, the proposal and the ground truth, whose offsets are 0: that of the stage before
    does not come with the proposals.
    """
    box = (10.0, 10.0, 50.0, 50.0 + surplus) if transpose else (10.0, 10.0, 50.0 + surplus, 50.0)
    losses = run_heads(constant_cascade(), box)
    labels = [1 if 40 / (40 + surplus) >= iou else 0 for iou in IOUS]
    assert sum(labels) == positive
    classification = regression = 0.0
    for label, stds, weight, logits in zip(labels, STDS, WEIGHTS, LOGITS, strict=True):
        classification += weight * (cross_entropy(logits, 1) + cross_entropy(logits, label)) / 2
        regression += weight * label * sum(map(smooth, offsets_to(TRUTH, box, stds))) / 2
    assert losses["loss_classifier"].item() == pytest.approx(classification, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(regression, rel=1e-5)


OFFSETS = ((2.0, -1.0, 1.0, 0.5), (-1.5, 1.0, 0.5, -2.0), (1.0, 2.0, -1.0, 1.0))


def test_each_stage_sees_the_boxes_of_the_one_before() -> None:
    """Moved, clipped, and with the ground truth once."""
    box = (80.0, 15.0, 125.0, 60.0)
    heads = constant_cascade(OFFSETS)
    seen: list[Tensor] = []
    for stage in heads.stages:
        stage.register_forward_pre_hook(lambda _stage, inputs: seen.append(inputs[1][0]))
    run_heads(heads, box)
    second = moved_by(OFFSETS[0], box, STDS[0])
    assert second[2] == SIDE  # this one is clipped
    third = moved_by(OFFSETS[1], tuple(second), STDS[1])
    expected = [torch.tensor([start, TRUTH]) for start in (list(box), second, third)]
    torch.testing.assert_close(seen, expected)


def test_no_stage_learns_from_the_losses_of_the_next() -> None:
    heads = constant_cascade(((0.2, 0.1, 0.3, 0.1),) * 3)  # the moved box is an object to the next stage too
    heads.stages[0].loss_weight = 0.0
    sum(run_heads(heads, (12.0, 10.0, 52.0, 50.0)).values()).backward()
    for parameter in heads.stages[0].box_predictor.parameters():
        assert not parameter.grad.any()
    assert heads.stages[1].box_predictor.bbox_pred.bias.grad.any()


def test_detections_of_the_cascade() -> None:
    """Scores: the softmax of the mean logits. Box: moved by all three stages."""
    box: Any = (60.0, 15.0, 100.0, 60.0)
    found = run_heads(constant_cascade(OFFSETS).eval(), box)
    mean = [sum(column) / 3 for column in zip(*LOGITS, strict=True)]
    scores = torch.tensor([math.exp(value) for value in mean])
    scores = scores / scores.sum()
    assert found["labels"].tolist() == [2, 1]
    torch.testing.assert_close(found["scores"], scores[[2, 1]])
    for offsets, stds in zip(OFFSETS, STDS, strict=True):
        box = moved_by(offsets, box, stds)
    torch.testing.assert_close(found["boxes"], torch.tensor([box, box]))


@pytest.mark.parametrize("settings", CASCADE)
def test_each_stage_samples_512_a_quarter_of_them_positive(settings: Any) -> None:
    stage = BoxStage(1, 3, True, *settings)
    objects, background = torch.tensor([TRUTH] * 600), torch.tensor([[60.0, 60, 90, 90]] * 600)
    targets = [{"boxes": torch.tensor([TRUTH]), "labels": torch.tensor([1])}]
    _, _, labels, _ = stage.select_training_samples([torch.cat((objects, background))], targets)
    assert labels[0].bincount().tolist() == [384, 128]
