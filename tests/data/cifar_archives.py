"""Small archives in the publishers' layouts."""

import dataclasses
import hashlib
import tarfile
from pathlib import Path

import numpy as np

from eenet_jax.data.builders.cifar_binary import CIFAR10, CIFAR100, BinaryLayout

SMALL_CIFAR10 = dataclasses.replace(
    CIFAR10,
    md5=None,
    files={
        "train": tuple((f"data_batch_{i}.bin", 8) for i in range(1, 6)),
        "test": (("test_batch.bin", 6),),
    },
)
SMALL_CIFAR100 = dataclasses.replace(
    CIFAR100, md5=None, files={"train": (("train.bin", 30),), "test": (("test.bin", 7),)}
)
LAYOUTS = {"cifar10": SMALL_CIFAR10, "cifar100": SMALL_CIFAR100}


def write_folder(layout: BinaryLayout, root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write random records, byte by byte as the publishers describe them.

    Returns:
      Split → (images [samples, 32, 32, 3], labels [samples]).
    """
    rng = np.random.default_rng(5)
    folder = root / layout.folder
    folder.mkdir(parents=True)
    written = {}
    for split, files in layout.files.items():
        images, labels = [], []
        for name, count in files:
            content = b""
            for _ in range(count):
                image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                label_bytes = [int(rng.integers(classes)) for classes in layout.label_classes]
                red, green, blue = (image[:, :, plane].tobytes() for plane in range(3))
                content += bytes(label_bytes) + red + green + blue
                images.append(image)
                labels.append(label_bytes[-1])
            (folder / name).write_bytes(content)
        written[split] = np.stack(images), np.asarray(labels)
    return written


def write_archive(layout: BinaryLayout, root: Path) -> str:
    """Pack `root`'s folder as the publisher does; returns the archive's md5."""
    path = root / layout.archive
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / layout.folder, layout.folder)
    return hashlib.md5(path.read_bytes()).hexdigest()
