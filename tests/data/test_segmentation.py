"""CamVid and Cityscapes, from trees that the tests make: every pixel back, every fault named."""

import json

import numpy as np
import pytest
from PIL import Image

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets, pipeline
from eenet_jax.data.builders import segmentation_tree
from eenet_jax.errors import InputError

SIZE = (6, 8)
COUNTS = {"train": 5, "val": 3, "test": 4}
CITIES = ("aachen", "zurich")
# The publisher's table of ids, written out: train id → id.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
RNG = np.random.default_rng(3)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def write_pair(image_path, label_path, ids):
    image = save(image_path, RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    return image, save(label_path, RNG.integers(0, ids, SIZE, dtype=np.uint8))


def write_camvid(root):
    """A tree of three splits; what was written, in the order of the files' names."""
    return {
        part: [
            write_pair(root / part / f"{i:02}.png", root / f"{part}annot" / f"{i:02}.png", 12)
            for i in range(count)
        ]
        for part, count in COUNTS.items()
    }


def cityscapes_paths(root, part, city, i):
    stem = f"{part}/{city}/{city}_{i:06}_000019"
    return (
        root / "leftImg8bit" / f"{stem}_leftImg8bit.png",
        root / "gtFine" / f"{stem}_gtFine_labelIds.png",
    )


def write_cityscapes(root):
    written = {
        part: [
            write_pair(*cityscapes_paths(root, part, city, i), 34)
            for city in CITIES
            for i in range(count)
        ]
        for part, count in (("train", 3), ("val", 2))
    }
    # Files of the publisher's that are not read.
    save(
        root / "gtFine/train/aachen/aachen_000000_000019_gtFine_color.png",
        np.zeros((2, 2, 4), "u1"),
    )
    return written


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    written = write_camvid(source / "CamVid")
    datasets.prepare("camvid", data_dir=data_dir, source=source)
    return data_dir, written


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    written = write_cityscapes(source)
    datasets.prepare("cityscapes", data_dir=data_dir, source=source)
    return data_dir, written


def open_part(name, part, data_dir, **settings):
    return datasets.open_split(
        name, part, data_dir=data_dir, settings=DataConfig(dataset=name, **settings)
    )


@pytest.mark.parametrize("part", COUNTS)
def test_every_pixel_and_label_of_camvid_comes_back(camvid, part):
    data_dir, written = camvid
    split = open_part("camvid", part, data_dir)
    batch = split.gather(np.arange(len(split)))
    images, ids = (np.stack(arrays) for arrays in zip(*written[part], strict=True))
    np.testing.assert_array_equal(batch["image"], images)
    np.testing.assert_array_equal(batch["label"], np.where(ids == 11, -1, ids.astype(int)))
    np.testing.assert_array_equal(batch["id"], np.arange(COUNTS[part]))
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_camvid_keeps_its_publishers_validation_split(camvid):
    data_dir, _ = camvid
    assert {part: len(open_part("camvid", part, data_dir)) for part in COUNTS} == COUNTS


def test_size_statistics_and_pixels_of_each_class_are_recorded(camvid):
    data_dir, written = camvid
    spec = open_part("camvid", "test", data_dir).spec
    images, ids = (np.stack(arrays) for arrays in zip(*written["train"], strict=True))
    np.testing.assert_allclose(spec.mean, (images / 255).mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(spec.std, (images / 255).std((0, 1, 2)), atol=1e-6)
    assert spec.image_shape == (*SIZE, 3)
    index = json.loads((data_dir / "camvid/1.0.0/index.json").read_text())
    assert list(index["pixels"]["train"]) == list(datasets.get("camvid").class_names)
    assert list(index["pixels"]["train"].values()) == np.bincount(ids.ravel())[:11].tolist()


def test_ids_of_cityscapes_become_its_19_classes(cityscapes):
    data_dir, written = cityscapes
    split = open_part("cityscapes", "test", data_dir)
    images, ids = (np.stack(arrays) for arrays in zip(*written["val"], strict=True))
    expected = np.full(ids.shape, -1)
    for label, known in enumerate(CITYSCAPES_IDS):
        expected[ids == known] = label
    batch = split.gather(np.arange(4))
    np.testing.assert_array_equal(batch["label"], expected)
    np.testing.assert_array_equal(batch["image"], images)
    assert split.spec.image_shape == (*SIZE, 3)


def test_cityscapes_holds_its_validation_images_out_of_train(cityscapes):
    data_dir, written = cityscapes
    train, val = (
        datasets.open_split("cityscapes", part, data_dir=data_dir, val_size=2)
        for part in ("train", "val")
    )
    assert sorted([*train.ids, *val.ids]) == list(range(6))
    for split in (train, val):
        for i, sample in enumerate(split.ids):
            np.testing.assert_array_equal(
                split.gather(np.asarray([i]))["image"][0], written["train"][sample][0]
            )


def test_only_an_index_of_cityscapes_is_written(cityscapes):
    data_dir, _ = cityscapes
    assert [path.name for path in (data_dir / "cityscapes/1.0.0").iterdir()] == ["index.json"]


def test_workers_are_as_many_as_asked(cityscapes, camvid):
    assert open_part("cityscapes", "test", cityscapes[0], workers=3).workers == 3
    # Nothing is decoded, so that processes would only cost.
    assert open_part("camvid", "test", camvid[0], workers=3).workers == 0


def test_training_batches_are_those_that_are_evaluated(camvid):
    data_dir, _ = camvid
    split = open_part("camvid", "train", data_dir)
    batch = next(pipeline.train_batches(split, batch_size=2, seed=0))
    again = split.gather(batch["id"])
    np.testing.assert_array_equal(batch["label"], again["label"])


def test_a_part_of_a_set_is_taken_with_a_warning(tmp_path, capsys):
    write_camvid(tmp_path / "CamVid")
    datasets.prepare("camvid", data_dir=tmp_path / "data", source=tmp_path / "CamVid")
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0] == "warning: train of CamVid has 5 images here, 367 at its publisher's"
    assert len(warnings) == 3


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def drop(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def set_id(path):
    ids = np.asarray(Image.open(path)).copy()
    ids[2, 3] = 77
    save(path, ids)


FAULTS = {
    "no image folder": ("val", lambda p: (empty(p), p.rmdir()), "no folder 'val'"),
    "no label folder": ("testannot", lambda p: (empty(p), p.rmdir()), "no folder 'testannot'"),
    "empty split": ("val", empty, "no file *.png"),
    "image without labels": ("trainannot/03.png", drop, "image '03' of train has no label map"),
    "labels without image": ("test/01.png", drop, "label map '01' of test has no image"),
    "sizes differ": ("test/01.png", lambda p: save(p, np.zeros((6, 9, 3), "u1")), "6 x 9 pixels"),
    "truncated image": ("val/02.png", truncate, "02.png' is no sound PNG"),
    "altered image": ("val/02.png", alter, "02.png' is no sound PNG"),
    "altered labels": ("valannot/00.png", alter, "00.png' is no sound PNG"),
    "no PNG": ("train/00.png", lambda p: p.write_text("none"), "00.png' is no sound PNG"),
    "grey image": ("val/01.png", lambda p: save(p, np.zeros(SIZE, "u1")), "mode L: convert"),
    "colours": (
        "trainannot/02.png",
        lambda p: save(p, np.zeros((*SIZE, 3), "u1")),
        "02.png' holds colours (mode RGB): give the maps of ids",
    ),
    "unknown id": ("valannot/01.png", set_id, "01.png' holds id 77: the ids of CamVid are 0 to 11"),
    "nothing labelled": (
        "trainannot/04.png",
        lambda p: save(p, np.full(SIZE, 11, "u1")),
        "04.png' labels no pixel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_tree_are_told_in_one_line_and_leave_nothing(tmp_path, fault):
    place, damage, message = FAULTS[fault]
    root = tmp_path / "CamVid"
    write_camvid(root)
    damage(root / place)
    with pytest.raises(InputError) as caught:
        datasets.prepare("camvid", data_dir=tmp_path / "data", source=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "camvid").exists()


CITY_FAULTS = {
    "altered image": (0, alter, "is no sound PNG"),
    "unknown id": (1, set_id, "holds id 77: the ids of cityscapes are 0 to 33"),
    "no label map": (1, drop, "aachen_000001_000019' of train has no label map"),
    "sizes differ": (0, lambda p: save(p, np.zeros((6, 9, 3), "u1")), "they must agree"),
    "colours": (1, lambda p: save(p, np.zeros((*SIZE, 4), "u1")), "*_gtFine_labelIds.png"),
    "nothing labelled": (1, lambda p: save(p, np.zeros(SIZE, "u1")), "labels no pixel"),
}


@pytest.mark.parametrize("fault", CITY_FAULTS)
def test_faults_are_found_without_decoding_every_image(tmp_path, fault):
    which, damage, message = CITY_FAULTS[fault]
    write_cityscapes(tmp_path / "cityscapes")
    damage(cityscapes_paths(tmp_path / "cityscapes", "train", "aachen", 1)[which])
    with pytest.raises(InputError) as caught:
        datasets.prepare("cityscapes", data_dir=tmp_path / "data", source=tmp_path)
    assert message in str(caught.value)


def test_images_of_two_sizes_are_refused(tmp_path):
    write_camvid(tmp_path)
    for folder in ("test", "testannot"):
        array = np.asarray(Image.open(tmp_path / folder / "02.png"))
        save(tmp_path / folder / "02.png", array[:5])
    with pytest.raises(InputError, match=r"02\.png' has 5 x 8 pixels, the first image 6 x 8"):
        datasets.prepare("camvid", data_dir=tmp_path / "data", source=tmp_path)


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_what_cannot_be_downloaded_says_where_it_is_had(tmp_path, name):
    with pytest.raises(InputError, match=r"can't be downloaded: get .*--from"):
        datasets.prepare(name, data_dir=tmp_path)


def test_files_that_went_missing_since_are_named(tmp_path):
    write_cityscapes(tmp_path / "a")
    datasets.prepare("cityscapes", data_dir=tmp_path / "data", source=tmp_path / "a")
    split = open_part("cityscapes", "test", tmp_path / "data")
    cityscapes_paths(tmp_path / "a", "val", "aachen", 1)[0].unlink()
    with pytest.raises(InputError, match=r"no file at .*aachen_000001"):
        split.gather(np.asarray([1]))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(InputError, match=r"no longer in .*--from where it is now"):
        open_part("cityscapes", "test", tmp_path / "data")


def test_a_damaged_prepared_set_says_what_to_run(camvid, tmp_path):
    data_dir, _ = camvid
    folder = tmp_path / "camvid" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "camvid/1.0.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    np.save(folder / "val_labels.npy", np.zeros((2, *SIZE), np.uint8))
    with pytest.raises(InputError, match=r"is damaged .*run eenet data prepare camvid"):
        open_part("camvid", "val", tmp_path)


def test_the_tables_of_ids_name_every_class_once():
    for layout, name in (
        (segmentation_tree.CAMVID, "camvid"),
        (segmentation_tree.CITYSCAPES, "cityscapes"),
    ):
        classes = [label for label in layout.classes if label >= 0]
        assert sorted(classes) == list(range(datasets.get(name).num_classes))
    ids = [segmentation_tree.CITYSCAPES.classes.index(label) for label in range(19)]
    assert tuple(ids) == CITYSCAPES_IDS
    assert len(segmentation_tree.CITYSCAPES.classes) == 34
