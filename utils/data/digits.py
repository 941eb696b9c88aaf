"""The built-in demo data: scikit-learn's 1,797 handwritten digits as an image folder."""

import shutil
import uuid
from pathlib import Path

import numpy as np
from PIL import Image


def write_digits(folder: Path) -> Path:
    """Write the digits to ``folder`` unless it exists, and return ``folder``.

    1,437 training and 360 validation images (a fixed, stratified split) as 8x8 grey PNGs in
    ``{train,val}/{0..9}/NNNN.png``. They are written to a temporary folder that is then renamed, so an
    interrupted run leaves no incomplete folder.
    """
    if folder.exists():
        return folder
    # scikit-learn takes two seconds to import, and only the first run needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    splits = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    building = folder.with_name(f".digits-{uuid.uuid4().hex}")
    for split, indices in zip(("train", "val"), splits, strict=True):
        for index in indices:
            pixels = (images[index].reshape(8, 8) * (255 / 16)).round().astype(np.uint8)
            path = building / split / str(labels[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    try:
        building.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(building)  # another process was faster
    return folder
