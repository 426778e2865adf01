"""ImageNet as TFDS has prepared it, read without TensorFlow."""

import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import NAME, encoded, open_split, prepare, scene, write_tree

from eenet_jax.data.imagenet_classes import WNIDS
from eenet_jax.errors import InputError


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A few records in the layout of TFDS's own builder of that name."""

    name = NAME
    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(WNIDS)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(9), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            content = encoded(scene(i)) if count == 4 or i else encoded(scene(i))[:-200]
            yield i, {"image": io.BytesIO(content), "label": 10 * i, "file_name": f"{i}.JPEG"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Imagenet2012(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_what_tfds_has_prepared_is_read_as_it_is(records):
    test = open_split(records, "test")
    batch = test.gather(np.arange(4))
    number = batch["label"] // 10
    np.testing.assert_array_equal(np.sort(number), np.arange(4))
    np.testing.assert_allclose(batch["image"][..., 2].mean((1, 2)), 30 + 12 * number, atol=4)
    assert (len(open_split(records, val_size=3)), len(open_split(records, "val", 3))) == (6, 3)


def test_a_damaged_record_is_named(records):
    train = open_split(records)
    with pytest.raises(InputError, match=r"5.1.0: train: 0.JPEG' is damaged \(Premature end"):
        train.gather_training(np.arange(9), np.random.default_rng(0))


def test_our_own_preparation_comes_before_tfds(records, tmp_path):
    shutil.copytree(records, tmp_path, dirs_exist_ok=True)
    assert len(open_split(tmp_path)) == 9
    prepare(write_tree(tmp_path / "tree"), tmp_path)
    assert len(open_split(tmp_path)) == 12


def test_records_of_other_files_or_classes_are_refused(records, tmp_path):
    shutil.copytree(records, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / NAME / "5.1.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"is not in ArrayRecord files, .*convert_format"):
        open_split(tmp_path)
    info.write_text(info.read_text().replace("tfrecord", "array_record"))
    names = folder / "label.labels.txt"
    names.write_text(names.read_text().replace(WNIDS[3], "n99999999"))
    # Another folder, as every process opens one once.
    folder.rename(folder.with_name("5.0.0"))
    with pytest.raises(InputError, match=r"has other classes than imagenet2012"):
        open_split(tmp_path)
