"""TFDS builders of CIFAR-10 and CIFAR-100 that need no TensorFlow.

The stock builders can't encode PNGs without it; here pixels are kept as raw bytes, which is
also the fastest to read for images of this size.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from eenet_jax.data.labelled_images import LabelledImages

VERSION = "1.0.0"


# Not registered: the stock builders of the same names stay reachable through `tfds.load`.
class _CifarBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(VERSION)
    HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def __init__(
        self,
        *,
        records: Mapping[str, LabelledImages],
        class_names: tuple[str, ...],
        metadata: Mapping[str, Any],
        data_dir: str,
    ):
        self._records = records
        self._class_names = class_names
        self._metadata = dict(metadata)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=list(self._class_names)),
            "id": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # The archive was found, checked and decoded before.
        return {split: self._generate_examples(split) for split in self._records}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = self._records[split]
        for i, (image, label) in enumerate(zip(records.images, records.labels, strict=True)):
            yield i, {"image": image, "label": int(label), "id": i}


class Cifar10(_CifarBuilder, skip_registration=True):
    """CIFAR-10 (Krizhevsky, 2009)."""

    name = "cifar10"


class Cifar100(_CifarBuilder, skip_registration=True):
    """CIFAR-100 (Krizhevsky, 2009), with its fine labels."""

    name = "cifar100"


BUILDERS: dict[str, type[_CifarBuilder]] = {"cifar10": Cifar10, "cifar100": Cifar100}
