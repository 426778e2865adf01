"""Small trees and records of pictures whose colours are known."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets
from eenet_jax.data.imagenet_classes import WNIDS

NAME = "imagenet2012"
SIDE = 14
CLASSES = (WNIDS[0], WNIDS[7], WNIDS[999])
COUNTS = {"train": (3, 4, 5), "val": (1, 2, 1)}


def scene(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture, so that JPEG keeps it within a few levels; each number has its own."""
    x, y = np.linspace(0, 1, width)[None], np.linspace(0, 1, height)[:, None]
    planes = (40 + 160 * x + 0 * y, 40 + 160 * y + 0 * x, 30 + 12 * (number % 16) + 0 * x + 0 * y)
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}) | options)
    return buffer.getvalue()


def write_tree(root: Path) -> Path:
    """Three of the 1,000 classes; sizes differ from image to image."""
    for part, counts in COUNTS.items():
        for wnid, count in zip(CLASSES, counts, strict=True):
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                content = encoded(scene(i, 30 + 7 * i, 20 + 9 * i))
                (folder / f"{wnid}_{i}.JPEG").write_bytes(content)
    return root


def prepare(root: Path, data_dir: Path) -> None:
    datasets.prepare(NAME, data_dir=data_dir, source=root)


def open_split(data_dir: Path, split: str = "train", val_size: int = 0, **settings):
    config = DataConfig(**{"dataset": NAME, "crop_shape": (SIDE, SIDE), **settings})
    return datasets.open_split(NAME, split, data_dir=data_dir, val_size=val_size, settings=config)
