"""Evaluations that count more than loss and accuracy, or compare a part of the outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.common.checks import check_libraries, check_output
from utils.common.errors import UserError
from utils.common.files import write_output
from utils.common.text import plural, shown
from utils.data.real_labels import RealLabels, hits
from utils.training.classification import ImageEvaluation
from utils.training.confusion_picture import MOST, picture
from utils.training.metrics import Meter, Metrics, Sums, best_five
from utils.training.per_class import Confusion, ConfusionCounter, as_csv


@dataclass(frozen=True)
class Files:
    """What is written of the classes: ``--per-class`` and ``--confusion``; None: not that file."""

    per_class: Path | None = None
    confusion: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.per_class or self.confusion)

    def check(self, classes: int, overwrite: bool) -> None:
        """Check before the work that the files can be written.

        Raises:
            UserError: they cannot, are there already, or there are too many classes for a picture.
        """
        if self.per_class:
            check_output(self.per_class, "--per-class", overwrite)
        if self.confusion:
            check_output(self.confusion, "--confusion", overwrite)
            check_libraries("--confusion", "matplotlib")
            if classes > MOST:
                what = f"--confusion draws up to {MOST:,} classes, {classes:,} outputs are compared"
                raise UserError(f"{what}: --per-class names the largest confusion of each")

    def write(self, confusion: Confusion, title: str) -> None:
        """Write the files.

        Raises:
            UserError: one cannot be written.
        """
        if self.per_class:
            text = as_csv(confusion)  # names of folders that are no UTF-8 keep their bytes
            _write(self.per_class, "--per-class", text.encode("utf-8", "surrogateescape"))
        if self.confusion:
            _write(self.confusion, "--confusion", picture(confusion, title))


def _write(path: Path, flag: str, content: bytes) -> None:
    write_output(path, content, f"{flag} {shown(str(path))}")
    print(f"{flag}: written to {shown(str(path))}")


@dataclass
class ClassEvaluation(ImageEvaluation):
    """Loss and accuracy over a part of the outputs, and the same for each class.

    Args:
        classes: the name of each output.
        compared: the outputs that are compared, ascending; every label is one of them.
        files: what is written.
        title: of the picture.
    """

    classes: Sequence[str] = ()
    compared: Sequence[int] = ()
    files: Files = Files()
    title: str = ""

    def begin(self) -> Meter:
        device = self.loader.device
        self.part = torch.tensor(self.compared, device=device)
        self.places = torch.zeros(len(self.classes), dtype=torch.int64, device=device)
        self.places[self.part] = torch.arange(len(self.part), device=device)
        names = [self.classes[output] for output in self.compared]
        self.counter = ConfusionCounter(names, device) if self.files else None
        return super().begin()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        if len(self.compared) < len(self.classes):
            logits, labels = logits[:, self.part], self.places[labels]
        super().add(logits, labels)
        if self.counter is not None:
            self.counter.add(logits, labels)

    def report(self) -> None:
        metrics: Metrics = self.run()
        part = len(self.compared) < len(self.classes)
        over = f", over {len(self.compared):,} of {len(self.classes):,} outputs" if part else ""
        print(f"{metrics.published()}{over}")
        if self.counter is not None:
            confusion = self.counter.read(self.ranks)
            what = f"{self.title}: top-1 {metrics.top1:.2f} %, {plural(metrics.images, 'image')}{over}"
            if self.ranks.main:
                self.files.write(confusion, what)


@dataclass
class RealEvaluation(ImageEvaluation):
    """Loss and accuracy by class folder, and the accuracy by ReaL labels; the loader numbers the images.

    Args:
        labels: of every sample; it must be given.
    """

    labels: RealLabels | None = None

    def begin(self) -> Meter:
        assert self.labels is not None
        device = self.loader.device
        self.own, self.real = (part.to(device) for part in self.labels)
        self.counted = Sums(device, 3)  # images with ReaL labels, hits, images without
        return super().begin()

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (B, K) and the numbers of the images (B,)."""
        super().add(logits, self.own[labels])
        hit, has_labels = hits(best_five(logits)[:, 0], self.real[labels])
        self.counted.sums += torch.stack([has_labels.sum(), hit.sum(), (~has_labels).sum()])

    def report(self) -> None:
        print(self.run().published())
        images, right, without = (int(value) for value in self.counted.values(self.ranks))
        of = f"{plural(images, 'image')}; {without:,} without ReaL labels {'is' if without == 1 else 'are'}"
        accuracy = f"{100 * right / images:.2f}" if images else "none"
        print(f" ReaL Acc:  {accuracy}, over {of} left out")
