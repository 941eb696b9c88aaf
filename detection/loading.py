"""Batches of images of different sizes, with a dict of tensors for each: for detectors, which pad them."""

from typing import Any

from utils.data.loading import Batch, Batches, DeviceLoader, Sample, shared


def collect(samples: list[Sample]) -> Batch:
    """Those that could be read, possibly none, in lists: images (3, H, W) differ in size."""
    whole = [sample for sample in samples if sample.image is not None]
    broken = tuple(file for sample in samples for file in sample.broken)
    targets: Any = [sample.label for sample in whole]
    images: Any = [shared(sample.image) for sample in whole if sample.image is not None]
    labels: Any = [{key: shared(value) for key, value in target.items()} for target in targets]
    return Batch(images, labels, broken)


class RaggedLoader(DeviceLoader[Batches]):
    """Batches on the device: a list of images (3, H, W), float32 from 0 to 1, and one of their dicts."""

    without = "counted as images without detections"
    remedy = ""

    def _to_device(self, batch: Any) -> tuple[Any, Any]:
        images = [image.to(self.device, non_blocking=True).float().div_(255) for image in batch.images]
        targets = [{k: v.to(self.device, non_blocking=True) for k, v in one.items()} for one in batch.labels]
        return images, targets
