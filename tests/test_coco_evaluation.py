"""COCO's numbers: those of pycocotools, of every image once, whatever the processes."""

import contextlib
import io
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Run
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_coco import IDS, Guess, save, write_coco

from detection.coco import CocoSplit, decode_masks, read_coco
from detection.evaluate import (
    NUMBERS,
    CocoEvaluation,
    Results,
    Scores,
    score,
    to_results,
    write_results,
)
from detection.loading import coco_validation_loader
from utils.common.distributed import ONE_PROCESS
from utils.common.errors import UserError
from utils.data.loading import Reading

BOTH = ("bbox", "segm")
# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", "val2017", 7)
    return tmp_path / "coco"


def read(root: Path, masks: bool = True) -> CocoSplit:
    return read_coco(root, "val2017", training=False, masks=masks)


def evaluate(split: CocoSplit, masks: bool = True, batch: int = 2) -> tuple[Scores, Results]:
    """The scores of guesses, and their records."""
    loader = coco_validation_loader(split, batch, Reading(max_bad=0.5), ONE_PROCESS)
    evaluation = CocoEvaluation(split, Guess(masks), loader)
    return evaluation.run(), evaluation.records


def perfect(split: CocoSplit) -> Results:
    """What the file itself holds, as a detector would say it."""
    detections = []
    for _, target in split.samples:
        masks = decode_masks(target.masks or [], *target.size)
        found = {"boxes": torch.tensor(target.boxes), "labels": torch.tensor(target.labels)}
        found["scores"] = torch.linspace(1, 0.5, len(target.labels))
        detections.append({**found, "masks": masks[:, None].float()})
    return to_results(detections, split.image_ids, split.ids)


def by_pycocotools(file: Path, results: Results, kind: str) -> list[float]:
    """As its authors show: a file of annotations, a file of results."""
    keys = {"bbox": ("bbox",), "segm": ("segmentation",)}[kind]
    own = [{key: one[key] for key in ("image_id", "category_id", "score", *keys)} for one in results]
    saved = file.parent.parent / "results.json"
    saved.write_text(json.dumps(own))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes(str(saved)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else 100 * value for value in evaluation.stats.tolist()]


def test_records(coco: Path) -> None:
    mask = torch.zeros(1, 1, 6, 8)
    mask[0, 0, 1:4, 2:5] = torch.tensor([0.4, 0.6, 0.9])
    boxes, label = torch.tensor([[2.0, 1.0, 5.5, 4.0]]), torch.tensor([3])
    found = {"boxes": boxes, "labels": label, "scores": torch.tensor([0.5]), "masks": mask}
    nothing = {key: value[:0] for key, value in found.items()}
    (record,) = to_results([nothing, found], [8, 9], IDS)
    runs = record.pop("segmentation")
    assert record == {"image_id": 9, "category_id": 90, "bbox": [2, 1, 3.5, 3], "score": 0.5}
    assert json.loads(json.dumps(runs)) == runs
    assert rle_masks.decode(runs).tolist() == (mask[0, 0] > 0.5).int().tolist()
    del found["masks"]
    assert "segmentation" not in to_results([found], [9], IDS)[0]


def test_what_the_file_says_is_perfect(coco: Path) -> None:
    split = read(coco)
    scores = score(split.annotations, perfect(split), BOTH, split.image_ids)
    for numbers in scores:
        assert numbers is not None
        first = [numbers["AP"], numbers["AP50"], numbers["AR100"]]
        assert first == pytest.approx([100, 100, 100])
        assert math.isnan(numbers["APl"])
        assert math.isnan(numbers["ARl"])


@pytest.mark.parametrize("masks", [False, True])
def test_guesses_are_scored_as_by_pycocotools(coco: Path, masks: bool) -> None:
    split = read(coco, masks)
    scores, results = evaluate(split, masks)
    assert len(results) == 80 * 7
    assert [one["image_id"] for one in results] == sorted(one["image_id"] for one in results)
    kinds = BOTH if masks else BOTH[:1]
    for kind, numbers in zip(kinds, scores, strict=False):
        assert numbers is not None
        expected = by_pycocotools(split.annotations, results, kind)
        assert list(numbers.values()) == pytest.approx(expected, nan_ok=True)
        assert tuple(numbers) == NUMBERS
        assert 0 < numbers["AP"] < 50
    assert (scores.mask is None) == (not masks)


def test_scoring_changes_no_record_and_says_nothing(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = read(coco)
    results = perfect(split)
    before = json.dumps(results)
    first = score(split.annotations, results, BOTH)
    assert str(score(split.annotations, results, BOTH)) == str(first)
    assert json.dumps(results) == before
    assert capsys.readouterr().out == ""


def test_batches_do_not_matter(coco: Path) -> None:
    split = read(coco)
    one, all_at_once = (evaluate(split, batch=size) for size in (1, 7))
    assert one[1] == all_at_once[1]
    assert str(one[0]) == str(all_at_once[0])


@pytest.mark.parametrize("kinds", [BOTH[:1], BOTH])
def test_no_detections_at_all(coco: Path, kinds: tuple[str, ...]) -> None:
    scores = score(read(coco).annotations, [], kinds)
    assert (scores.box["AP"], scores.box["AR100"], scores.best) == (0, 0, 0)
    assert math.isnan(scores.box["APl"])
    assert (scores.mask is None) == (kinds == BOTH[:1])


def test_only_some_images(coco: Path) -> None:
    split = read(coco)
    results = perfect(split)
    half = [one for one in results if one["image_id"] > 997]
    assert score(split.annotations, half).box["AP"] < 99
    scores = score(split.annotations, half, image_ids=[998, 999, 1000])
    assert scores.box["AP"] == pytest.approx(100)


def test_images_that_cannot_be_decoded_have_no_detections(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coco / "val2017" / "0003.png").write_bytes(b"no picture")
    split = read(coco)
    scores, results = evaluate(split)
    assert {one["image_id"] for one in results} == set(split.image_ids) - {997}
    expected = by_pycocotools(split.annotations, results, "bbox")
    assert list(scores.box.values()) == pytest.approx(expected, nan_ok=True)
    output = capsys.readouterr().out
    assert "0003.png" in output
    assert "1 image could not be decoded: counted as images without detections" in output


def test_numbers_of_objects_do_not_matter(coco: Path) -> None:
    """pycocotools itself takes the object 0 for none; sets that others made begin with it."""
    split = read(coco)
    content = json.loads(split.annotations.read_text())
    for number, one in enumerate(content["annotations"]):
        one["id"] = number // 2
        del one["iscrowd"]
        del one["area"]
    save(coco, "val2017", content)
    scores = score(split.annotations, perfect(split), BOTH)
    assert scores.box["AP"] == pytest.approx(100)


def test_the_table() -> None:
    numbers = dict(zip(NUMBERS, [*map(float, range(11)), math.nan], strict=True))
    lines = str(Scores(numbers, numbers)).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("box   AP 0.0  AP50 1.0  AP75 2.0  APs 3.0")
    assert lines[1].startswith("mask  AP 0.0")
    assert lines[1].endswith("ARm 10.0  ARl nan")
    assert len(str(Scores(numbers)).splitlines()) == 1


def test_the_best_epoch_is_that_of_the_highest_box_ap() -> None:
    assert Scores({"AP": 12.5}, {"AP": 50.0}).best == 12.5
    assert Scores({"AP": math.nan}).best == 0


def test_a_result_file_is_what_pycocotools_loads(coco: Path, tmp_path: Path) -> None:
    split = read(coco)
    results = perfect(split)
    write_results(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(split.annotations)).loadRes(str(tmp_path / "results.json"))
    assert len(found.anns) == len(results)
    with pytest.raises(UserError, match=r"--detections .*nowhere.*: No such file or directory; give"):
        write_results(results, tmp_path / "nowhere" / "results.json")


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_every_image_once_in_several_processes(
    launch: Run, tmp_path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Also with fewer images than processes."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    write_coco(tmp_path / "few", "val2017", 2)
    result = launch("tests/small_coco.py", coco, tmp_path / "few", processes=processes)
    assert result.returncode == 0, result.stderr
    for data in (coco, tmp_path / "few"):
        split = read(data)
        scores, results = evaluate(split)
        found = json.loads((data / f"{processes}.json").read_text())
        assert found["results"] == results
        assert found["texts"] == [str(scores)] * processes
        alone = [list(numbers.values()) for numbers in scores if numbers is not None]
        for ours, theirs in zip(found["scores"], alone, strict=True):
            assert ours == pytest.approx(theirs, nan_ok=True)
