"""From the publishers' archives through TFDS to a split, and every way that can fail."""

import dataclasses
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from cifar_archives import LAYOUTS, SMALL_CIFAR10, SMALL_CIFAR100, write_archive, write_folder

from eenet_jax.data import datasets
from eenet_jax.data.images import BinaryImages
from eenet_jax.errors import InputError

REAL_CIFAR10 = os.environ.get("EENET_TEST_CIFAR10")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Both small sets, prepared once: (data_dir, what was written of each)."""
    data_dir = tmp_path_factory.mktemp("data")
    written = {}
    for name, layout in LAYOUTS.items():
        source = tmp_path_factory.mktemp(name)
        written[name] = write_folder(layout, source)
        datasets.prepare(name, data_dir=data_dir, source=source, form=BinaryImages(layout))
    return data_dir, written


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_pixel_and_label_comes_back(prepared, name):
    data_dir, written = prepared
    images, labels = written[name]["test"]
    test = datasets.open_split(name, "test", data_dir=data_dir)
    np.testing.assert_array_equal(test.images, images)
    np.testing.assert_array_equal(test.labels, labels)
    np.testing.assert_array_equal(test.ids, np.arange(len(labels)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_train_and_val_share_out_the_training_split(prepared, name):
    data_dir, written = prepared
    images, labels = written[name]["train"]
    parts = [
        datasets.open_split(name, split, data_dir=data_dir, val_size=9)
        for split in ("train", "val")
    ]
    assert [len(part) for part in parts] == [len(labels) - 9, 9]
    ids = np.concatenate([part.ids for part in parts])
    np.testing.assert_array_equal(np.sort(ids), np.arange(len(labels)))
    for part in parts:
        np.testing.assert_array_equal(part.images, images[part.ids])
        np.testing.assert_array_equal(part.labels, labels[part.ids])


@pytest.mark.parametrize("name", LAYOUTS)
def test_statistics_are_recorded_from_the_whole_training_split(prepared, name):
    data_dir, written = prepared
    pixels = written[name]["train"][0] / 255
    spec = datasets.open_split(name, "test", data_dir=data_dir).spec
    np.testing.assert_allclose(spec.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(spec.std, pixels.std((0, 1, 2)), atol=1e-6)


def test_a_prepared_set_is_an_ordinary_tfds_data_set(prepared):
    data_dir, written = prepared
    images, labels = written["cifar100"]["train"]
    source = tfds.data_source("cifar100:1.0.0", split="train", data_dir=data_dir)
    assert len(source) == 30
    np.testing.assert_array_equal(source[17]["image"], images[17])
    assert (source[17]["label"], source[17]["id"]) == (labels[17], 17)


def test_nothing_but_the_set_is_left_in_the_folder(prepared):
    data_dir, _ = prepared
    assert {path.name for path in data_dir.iterdir()} == {"cifar10", "cifar100"}
    files = [path for path in (data_dir / "cifar10").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"1.0.0"}
    assert {path.suffix for path in files if "array_record" not in path.name} <= {".json", ".txt"}


@pytest.mark.parametrize("given", ["archive in folder", "archive", "unpacked folder itself"])
def test_the_archive_and_the_folder_give_the_same(tmp_path, given):
    written = write_folder(SMALL_CIFAR10, tmp_path / "raw")
    md5 = write_archive(SMALL_CIFAR10, tmp_path / "raw")
    source = tmp_path / "raw" / SMALL_CIFAR10.folder
    if given != "unpacked folder itself":
        shutil.rmtree(source)
        source = tmp_path / "raw"
    if given == "archive":
        source = source / SMALL_CIFAR10.archive
    layout = dataclasses.replace(SMALL_CIFAR10, md5=md5)
    datasets.prepare(
        "cifar10", data_dir=tmp_path / "data", source=source, form=BinaryImages(layout)
    )
    test = datasets.open_split("cifar10", "test", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(test.images, written["test"][0])


def test_a_download_is_checked_and_read(tmp_path):
    written = write_folder(SMALL_CIFAR10, tmp_path / "raw")
    md5 = write_archive(SMALL_CIFAR10, tmp_path / "raw")
    url = (tmp_path / "raw" / SMALL_CIFAR10.archive).as_uri()
    layout = dataclasses.replace(SMALL_CIFAR10, url=url, md5=md5)
    datasets.prepare("cifar10", data_dir=tmp_path / "data", form=BinaryImages(layout))
    test = datasets.open_split("cifar10", "test", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(test.labels, written["test"][1])
    wrong = dataclasses.replace(layout, md5="0" * 32)
    with pytest.raises(InputError, match=f"md5 {md5}, the publisher's is 000"):
        datasets.prepare("cifar10", data_dir=tmp_path / "data", form=BinaryImages(wrong))


def test_no_network_is_one_line_with_the_remedy(tmp_path):
    layout = dataclasses.replace(SMALL_CIFAR10, url="http://127.0.0.1:9/archive.tar.gz")
    with pytest.raises(InputError, match=r"can't download http://127.*--from FOLDER"):
        datasets.prepare("cifar10", data_dir=tmp_path / "data", form=BinaryImages(layout))
    assert everything_below(tmp_path) == []


def truncate(folder):
    os.truncate(folder / "data_batch_3.bin", 8 * 3073 - 1)


def drop_a_record(folder):
    os.truncate(folder / "data_batch_3.bin", 7 * 3073)


def spoil_a_label(folder):
    content = bytearray((folder / "data_batch_2.bin").read_bytes())
    content[3 * 3073] = 10
    (folder / "data_batch_2.bin").write_bytes(content)


def delete_a_file(folder):
    (folder / "test_batch.bin").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"data_batch_3.bin has 24,583 bytes, 8 records make 24,584"),
        (drop_a_record, r"data_batch_3.bin has 21,511 bytes, 8 records make 24,584"),
        (spoil_a_label, r"data_batch_2.bin: record 3 has label 10, labels run from 0 to 9"),
        (delete_a_file, r"can't read '.*test_batch.bin' \(No such file"),
    ],
)
def test_a_damaged_folder_is_refused_and_nothing_is_written(tmp_path, damage, message):
    write_folder(SMALL_CIFAR10, tmp_path / "raw")
    damage(tmp_path / "raw" / SMALL_CIFAR10.folder)
    before = everything_below(tmp_path)
    with pytest.raises(InputError, match=message):
        datasets.prepare(
            "cifar10",
            data_dir=tmp_path / "data",
            source=tmp_path / "raw",
            form=BinaryImages(SMALL_CIFAR10),
        )
    assert everything_below(tmp_path) == before


def test_a_coarse_label_out_of_range_is_refused(tmp_path):
    write_folder(SMALL_CIFAR100, tmp_path)
    path = tmp_path / SMALL_CIFAR100.folder / "test.bin"
    content = bytearray(path.read_bytes())
    content[2 * 3074] = 20
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"test.bin: record 2 has label 20, .* 0 to 19"):
        datasets.prepare(
            "cifar100",
            data_dir=tmp_path / "data",
            source=tmp_path,
            form=BinaryImages(SMALL_CIFAR100),
        )
    assert not (tmp_path / "data").exists()


def test_archives_of_the_wrong_kind_are_refused(tmp_path):
    write_folder(SMALL_CIFAR10, tmp_path)
    write_archive(SMALL_CIFAR10, tmp_path)
    shutil.rmtree(tmp_path / SMALL_CIFAR10.folder)
    archive = tmp_path / SMALL_CIFAR10.archive

    def prepare(layout):
        form = BinaryImages(layout) if layout else None
        datasets.prepare("cifar10", data_dir=tmp_path / "data", source=tmp_path, form=form)

    # The publisher's own checksum, then an archive cut short, without a file, and no archive.
    with pytest.raises(InputError, match=r"has md5 .* or unpack it and give the folder"):
        prepare(None)
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(InputError, match=r"cifar-10-binary.tar.gz' is not a readable archive"):
        prepare(SMALL_CIFAR10)
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(InputError, match=r"lacks cifar-10-batches-bin/data_batch_1.bin"):
        prepare(SMALL_CIFAR10)
    archive.write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"is not a readable archive"):
        prepare(SMALL_CIFAR10)
    assert not (tmp_path / "data").exists()


def test_a_folder_without_the_set_is_refused(tmp_path):
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"holds neither cifar-100-binary.tar.gz nor"):
            datasets.prepare("cifar100", data_dir=tmp_path / "data", source=source)
    assert everything_below(tmp_path) == []


def test_a_data_folder_that_is_a_file_is_refused(tmp_path):
    write_folder(SMALL_CIFAR10, tmp_path)
    (tmp_path / "data").write_text("")
    with pytest.raises(InputError, match=r"can't write .* another place"):
        datasets.prepare(
            "cifar10", data_dir=tmp_path / "data", source=tmp_path, form=BinaryImages(SMALL_CIFAR10)
        )


def test_preparing_again_replaces_the_set_and_a_failure_keeps_it(tmp_path, prepared):
    data_dir, written = prepared
    with pytest.raises(InputError, match=r"holds neither"):
        datasets.prepare("cifar10", data_dir=data_dir, source=tmp_path)
    test = datasets.open_split("cifar10", "test", data_dir=data_dir)
    np.testing.assert_array_equal(test.images, written["cifar10"]["test"][0])

    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    layout = dataclasses.replace(SMALL_CIFAR10, files={**SMALL_CIFAR10.files})
    fewer = {"train": (("data_batch_1.bin", 8),), "test": (("test_batch.bin", 2),)}
    layout = dataclasses.replace(layout, files=fewer)
    write_folder(layout, tmp_path / "raw")
    assert len(datasets.open_split("cifar10", "test", data_dir=copy)) == 6
    datasets.prepare("cifar10", data_dir=copy, source=tmp_path / "raw", form=BinaryImages(layout))
    assert len(datasets.open_split("cifar10", "test", data_dir=copy)) == 2


def test_a_set_not_prepared_is_answered_with_the_command(tmp_path):
    command = f"run eenet data prepare cifar10 --data-dir {tmp_path}"
    with pytest.raises(InputError, match=f"'cifar10' is not prepared in .*: {command}$"):
        datasets.open_split("cifar10", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: os.truncate(folder / "cifar10-test.array_record-00000-of-00001", 1_000),
        lambda folder: (folder / "cifar10-test.array_record-00000-of-00001").unlink(),
        lambda folder: (folder / "metadata.json").write_text("{}"),
        lambda folder: (folder / "dataset_info.json").write_text("{"),
        lambda folder: (folder / "features.json").unlink(),
    ],
)
def test_a_damaged_prepared_set_is_answered_with_the_command(tmp_path, prepared, spoil):
    shutil.copytree(prepared[0], tmp_path / "data")
    spoil(tmp_path / "data" / "cifar10" / "1.0.0")
    with pytest.raises(InputError, match=r"is damaged .*: run eenet data prepare cifar10"):
        datasets.open_split("cifar10", "test", data_dir=tmp_path / "data")


@pytest.mark.skipif(
    REAL_CIFAR10 is None, reason="EENET_TEST_CIFAR10 names no folder with the publisher's CIFAR-10"
)
def test_the_real_cifar10(tmp_path):
    datasets.prepare("cifar10", data_dir=tmp_path, source=REAL_CIFAR10)
    train, val, test = (
        datasets.open_split("cifar10", s, data_dir=tmp_path) for s in datasets.SPLITS
    )
    assert (len(train), len(val), len(test)) == (45_000, 5_000, 10_000)
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    known = datasets.get("cifar10")
    assert (train.spec.mean, train.spec.std) == (known.mean, known.std)
