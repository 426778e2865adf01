"""ImageNet's tree and TFDS's records: what is read is right, and what can't be is told."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from image_files import CLASSES, NAME, SIDE, encoded, open_split, prepare, scene, write_tree
from PIL import Image

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets, jpeg, pipeline
from eenet_jax.data.imagenet_classes import WNIDS
from eenet_jax.errors import InputError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """(the tree, the data folder that it is prepared in)"""
    root, data_dir = write_tree(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("data")
    prepare(root, data_dir)
    return root, data_dir


@pytest.fixture
def own_tree(tmp_path):
    return write_tree(tmp_path / "tree")


def test_the_classes_are_those_of_the_publisher_in_its_order():
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert (WNIDS[0], WNIDS[281], WNIDS[999]) == ("n01440764", "n02123045", "n15075141")
    labels = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    assert tuple(labels.read_text().split()) == WNIDS


def test_samples_are_listed_by_class_and_name_and_labels_count_all_1000_classes(tree):
    train, test = open_split(tree[1]), open_split(tree[1], "test")
    assert train.spec.num_classes == 1000
    labels = train.gather(np.arange(12))["label"]
    np.testing.assert_array_equal(labels, [0] * 3 + [7] * 4 + [999] * 5)
    np.testing.assert_array_equal(test.gather(np.arange(4))["label"], [0, 7, 7, 999])
    assert train.store.path(4) == f"{tree[0]}/train/{WNIDS[7]}/{WNIDS[7]}_1.JPEG"
    assert train.store.path(0).endswith(f"{WNIDS[0]}_0.JPEG")


def test_val_is_held_out_of_train_and_ids_are_places_in_the_tree(tree):
    train, val = (open_split(tree[1], split, val_size=5) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 5)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.ids, val.ids])), np.arange(12))
    whole = open_split(tree[1]).gather(val.ids)
    np.testing.assert_array_equal(val.gather(np.arange(5))["image"], whole["image"])
    np.testing.assert_array_equal(val.gather(np.arange(5))["id"], val.ids)


def test_only_an_index_is_written(tree):
    written = {path.name for path in (tree[1] / NAME / "1.0.0").iterdir()}
    assert written == {"tree.json", "train.npz", "val.npz"}


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (25, 25), (9, 31), (300, 16), (7, 5)])
def test_evaluation_resizes_and_crops_as_pillow_does(tmp_path, own_tree, size):
    path = next((own_tree / "val" / CLASSES[0]).iterdir())
    path.write_bytes(encoded(scene(3, *size)))
    prepare(own_tree, tmp_path / "data")
    shown = open_split(tmp_path / "data", "test").gather(np.arange(1))["image"][0]
    image, (width, height) = Image.open(path), size
    # 16 pixels for a crop of 14, as 256 for 224; cut off, not rounded, on the long side.
    shape = (16, 16 * height // width) if width < height else (16 * width // height, 16)
    left, top = round((shape[0] - SIDE) / 2), round((shape[1] - SIDE) / 2)
    resized = image.resize(shape, Image.Resampling.BILINEAR)
    expected = resized.crop((left, top, left + SIDE, top + SIDE))
    off = np.abs(shown.astype(int) - np.asarray(expected))
    # Its filter's weights are rounded differently where a part of the picture is resized.
    assert off.max() <= 1
    assert (off > 0).mean() < 0.03


def training_batch(tree, seed: int = 0, **settings):
    split = open_split(tree[1], **settings)
    return split.gather_training(np.arange(12), np.random.default_rng(seed))


def test_training_crops_are_parts_of_the_picture_of_every_size_and_both_ways_round(tree):
    crops = [training_batch(tree, seed) for seed in range(12)]
    shown = np.concatenate([crop["image"] for crop in crops]).astype(float)
    # Red runs from 40 to 200 across, green down; blue says which picture it is.
    across, down = shown[:, 7, -1, 0] - shown[:, 7, 0, 0], shown[:, -1, 7, 1] - shown[:, 0, 7, 1]
    flipped = across < 0
    assert 0.3 < flipped.mean() < 0.7
    assert (down > 0).all()
    share = np.abs(across) * down / (160 * (SIDE - 1) / SIDE) ** 2
    assert share.min() < 0.2
    assert 0.6 < share.max() < 1.2
    assert abs(share.mean() - 0.54) < 0.1
    blue = np.tile([30 + 12 * i for i in (0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4)], 12)
    np.testing.assert_allclose(shown[..., 2].mean((1, 2)), blue, atol=4)
    for crop in crops:
        np.testing.assert_array_equal(crop["label"], [0] * 3 + [7] * 4 + [999] * 5)


def test_crops_follow_the_draws_alone(tree):
    first, again, other = (training_batch(tree, seed)["image"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()


def test_without_random_crops_training_sees_what_evaluation_sees(tree):
    split = open_split(tree[1], augmentation="none")
    batch = split.gather_training(np.arange(12), np.random.default_rng(0))
    np.testing.assert_array_equal(batch["image"], split.gather(np.arange(12))["image"])


def ids_of(batches, count: int) -> list[list[int]]:
    return [next(batches)["id"].tolist() for _ in range(count)]


def test_workers_make_the_same_batches_and_tell_of_damage_in_one_line(tmp_path, own_tree):
    prepare(own_tree, tmp_path / "data")
    plain, ahead = (open_split(tmp_path / "data", workers=workers) for workers in (0, 2))
    in_line = pipeline.train_batches(plain, batch_size=4, seed=3)
    expected = [next(in_line) for _ in range(8)]
    batches = pipeline.train_batches(ahead, batch_size=4, seed=3)
    for step in (0, 1, 2):
        np.testing.assert_array_equal(next(batches)["image"], expected[step]["image"])
    state = batches.get_state()
    # With another number of workers, or none, a run goes on where it was.
    in_line.set_state(state)
    np.testing.assert_array_equal(next(in_line)["image"], expected[3]["image"])
    damaged = own_tree / "train" / CLASSES[1] / f"{CLASSES[1]}_1.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"^'{damaged}' is damaged \(Premature end of JPEG file"):
        ids_of(batches, 24)  # Some were read before it was damaged.
    assert not multiprocessing.active_children()


PARENT = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from eenet_jax.data.read_ahead import ReadAhead

def batch(number):
    return {"x": np.full(4, number)}

def terminate_at_once(workers):
    began = time.monotonic()
    while len(workers) < 2 and time.monotonic() - began < 30:
        for process in multiprocessing.active_children():
            if process.pid not in workers:
                workers.append(process.pid)
                os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.001)

if __name__ == "__main__":
    batches = ReadAhead(batch, 1000, 2)
    workers = []
    terminating = threading.Thread(target=terminate_at_once, args=(workers,))
    terminating.start()
    next(batches)
    terminating.join()
    # Once more, to processes that surely run by now.
    for _ in range(4):
        next(batches)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    print([int(next(batches)["x"][0]) for _ in range(20)] == list(range(5, 25)))
    print(*workers, flush=True)
    if sys.argv[1] == "dies":
        os._exit(3)
"""


def runs(pid: str) -> bool:
    """Whether that process is there, and is more than an entry that nobody has read yet."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("how", "status"), [("ends", 0), ("dies", 3)])
def test_sigterm_is_the_main_processs_and_workers_end_with_it(tmp_path, how, status):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    ended = subprocess.run(
        [sys.executable, program, how], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == status, ended.stderr
    same, workers = ended.stdout.splitlines()
    assert same == "True"
    assert len(workers.split()) == 2
    began = time.monotonic()
    while any(map(runs, workers.split())):
        assert time.monotonic() - began < 10
        time.sleep(0.1)


WAITING = """
import signal
import time
import numpy as np
from eenet_jax.data.read_ahead import ReadAhead

def batch(number):
    time.sleep(25 if number == 0 else 0)
    return {"x": np.full(4, number)}

if __name__ == "__main__":
    # What a shell starts in the background begins with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    batches = ReadAhead(batch, 1000, 2)
    print("waiting", flush=True)
    began = time.monotonic()
    try:
        next(batches)
    except KeyboardInterrupt:
        print(time.monotonic() - began < 20, batches.get_state(), flush=True)
"""


def test_ctrl_c_ends_the_wait_for_the_first_batch_which_is_then_still_to_come(tmp_path):
    program = tmp_path / "waiting.py"
    program.write_text(WAITING)
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output == "True {'next_index': 0}\n"
    assert process.returncode == 0


RED_BLUE = ((220, 40, 40), (40, 60, 200))


def two_colours() -> Image.Image:
    image = Image.new("RGB", (48, 32), RED_BLUE[0])
    image.paste(RED_BLUE[1], (24, 0, 48, 32))
    return image


def cmyk(inks: tuple[int, ...]) -> bytes:
    """As Adobe's programs write it: inverted, and marked as theirs."""
    content = encoded(Image.new("CMYK", (48, 32), inks))
    assert b"Adobe" in content
    return content


def without_adobe_marker(content: bytes) -> bytes:
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    return content[:start] + content[start + 2 + length :]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # "Turn by a quarter."
    return encoded(two_colours(), exif=exif)


def palette() -> bytes:
    return encoded(two_colours().quantize(2), "PNG", transparency=b"\x00\xff")


# What a file holds → the colours of the left and the right half of what is shown.
COLOURS = {
    "RGB": (encoded(two_colours()), *RED_BLUE),
    "progressive": (encoded(two_colours(), progressive=True), *RED_BLUE),
    "PNG": (encoded(two_colours(), "PNG"), *RED_BLUE),
    "palette": (palette(), *RED_BLUE),
    "EXIF": (turned(), *RED_BLUE),
    "grey": (encoded(Image.new("L", (48, 32), 90)), (90,) * 3, (90,) * 3),
    "cyan": (cmyk((255, 0, 0, 0)), (0, 255, 255), (0, 255, 255)),
    "dark yellow": (cmyk((0, 0, 255, 51)), (204, 204, 0), (204, 204, 0)),
    "unmarked": (without_adobe_marker(cmyk((255, 0, 0, 0))), (0, 255, 255), (0, 255, 255)),
    "appended": (encoded(two_colours()) + b"appended", *RED_BLUE),
    "one pixel": (encoded(Image.new("RGB", (1, 1), (9, 99, 199))), (9, 99, 199), (9, 99, 199)),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_right_whatever_the_file_is(tmp_path, own_tree, kind):
    content, left, right = COLOURS[kind]
    next((own_tree / "val" / CLASSES[0]).iterdir()).write_bytes(content)
    prepare(own_tree, tmp_path / "data")
    shown = open_split(tmp_path / "data", "test").gather(np.arange(1))["image"][0].astype(int)
    np.testing.assert_allclose(shown[:, 1], np.broadcast_to(left, (SIDE, 3)), atol=6)
    np.testing.assert_allclose(shown[:, -2], np.broadcast_to(right, (SIDE, 3)), atol=6)


def spoilt() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = bytearray(encoded(Image.fromarray(noise)))
    content[2000:2100] = bytes(100)
    return bytes(content)


def huge() -> bytes:
    """A header that claims 65,500 by 65,500 pixels."""
    content = encoded(scene(0))
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + b"\xff\xdc\xff\xdc" + content[start + 4 :]


DAMAGED = {
    "cut short": (encoded(scene(0))[:-200], "Premature end of JPEG file"),
    "a header's start": (encoded(scene(0))[:30], "Truncated File Read"),
    "PNG cut short": (encoded(scene(0), "PNG")[:-40], "image file is truncated"),
    "CMYK cut short": (cmyk((1, 2, 3, 4))[:-60], "image file is truncated"),
    "overwritten": (spoilt(), "Corrupt JPEG data: .*"),
    "empty": (b"", "an empty file"),
    "a web page": (b"<html>not found</html>", "no JPEG or PNG image"),
    "GIF": (encoded(scene(0).convert("P"), "GIF"), "no JPEG or PNG image"),
    "huge": (huge(), "65500 by 65500 pixels"),
    "16 bits": (encoded(Image.new("I;16", (9, 9), 40_000), "PNG"), "pixels of kind I;16, not 8 b"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_image_is_refused_by_name(tmp_path, own_tree, kind):
    content, reason = DAMAGED[kind]
    prepare(own_tree, tmp_path / "data")
    path = own_tree / "train" / CLASSES[0] / f"{CLASSES[0]}_1.JPEG"
    path.write_bytes(content)
    train = open_split(tmp_path / "data")
    for read in (train.gather, lambda at: train.gather_training(at, np.random.default_rng(0))):
        with pytest.raises(InputError, match=rf"^'{path}' is damaged \({reason}.*\): put an und"):
            read(np.arange(3))


def test_an_image_that_is_gone_is_named(tmp_path, own_tree):
    prepare(own_tree, tmp_path / "data")
    path = own_tree / "val" / CLASSES[1] / f"{CLASSES[1]}_0.JPEG"
    path.unlink()
    with pytest.raises(InputError, match=rf"can't read '{path}' \(No such file or directory\)"):
        open_split(tmp_path / "data", "test").gather(np.arange(4))


def move_images_up(part: Path) -> None:
    for path in list(part.glob("*/*")):
        path.rename(part / path.name)
    for folder in list(part.iterdir()):
        if folder.is_dir():
            folder.rmdir()


def nest(folder: Path) -> None:
    (folder / "images").mkdir()


def spoil_first(folder: Path) -> None:
    (folder / f"{folder.name}_0.JPEG").write_bytes(bytes(500))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "val"), r"can't list '.*/val' \(No such file.*WNID"),
        (lambda root: move_images_up(root / "val"), r"val' holds 4 images outside of class folde"),
        (lambda root: (root / "train" / WNIDS[5]).mkdir(), rf"{WNIDS[5]}' holds no images: unpack"),
        (lambda root: shutil.rmtree(root / "val" / WNIDS[7]), rf"classes, {WNIDS[7]} only train/"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[0]), rf"classes, {WNIDS[0]} only val/"),
        (lambda root: (root / "train" / "tench").mkdir(), r"holds 'tench', no classes of this set"),
        (lambda root: nest(root / "train" / WNIDS[7]), rf"{WNIDS[7]}/images' is a folder: images"),
        (lambda root: spoil_first(root / "val" / WNIDS[0]), rf"'.*{WNIDS[0]}_0.JPEG' is damaged"),
        (lambda root: (root / "val" / "1.JPEG").touch(), r"val' holds 1 images outside of class"),
    ],
)
def test_a_tree_that_is_not_whole_is_refused_and_nothing_is_written(
    tmp_path, own_tree, spoil, message
):
    spoil(own_tree)
    with pytest.raises(InputError, match=message):
        prepare(own_tree, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_files_that_are_no_images_are_nobodys_concern(tmp_path, own_tree):
    (own_tree / "train" / "README.txt").write_text("")
    (own_tree / "train" / ".cache").mkdir()
    (own_tree / "train" / CLASSES[0] / "Thumbs.db").write_text("")
    (own_tree / "train" / CLASSES[0] / "._hidden.JPEG").write_text("")
    prepare(own_tree, tmp_path / "data")
    assert len(open_split(tmp_path / "data")) == 12


def test_names_of_any_bytes_are_kept(tmp_path, own_tree):
    odd = os.fsencode(own_tree / "val" / CLASSES[0]) + b"/caf\xe9 1.jpg"
    with open(odd, "wb") as file:
        file.write(encoded(scene(9)))
    prepare(own_tree, tmp_path / "data")
    test = open_split(tmp_path / "data", "test")
    assert os.fsencode(test.store.path(0)) == odd
    assert abs(test.gather(np.arange(1))["image"][..., 2].mean() - (30 + 12 * 9)) < 4


def test_a_part_of_the_set_is_said_to_be_one(tmp_path, own_tree, capsys):
    prepare(own_tree, tmp_path / "data")
    told = capsys.readouterr().err
    assert "train of imagenet2012 has 12 images here, 1,281,167 at its publisher's" in told
    assert "val of imagenet2012 has 4 images here, 50,000" in told


def test_without_a_folder_the_account_is_named(tmp_path):
    with pytest.raises(InputError, match=r"can't be downloaded without an account: .*image-net"):
        datasets.prepare(NAME, data_dir=tmp_path)


def test_a_tree_that_has_moved_is_asked_for(tmp_path, own_tree):
    prepare(own_tree, tmp_path / "data")
    own_tree.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no longer in '.*/tree': run eenet data prepare"):
        open_split(tmp_path / "data")


def test_a_damaged_index_is_answered_with_the_command(tmp_path, tree):
    shutil.copytree(tree[1], tmp_path / "data")
    index = tmp_path / "data" / NAME / "1.0.0" / "train.npz"
    os.truncate(index, 300)
    with pytest.raises(InputError, match=r"is damaged .*: run eenet data prepare imagenet2012"):
        open_split(tmp_path / "data")


def test_a_missing_library_is_named_with_the_extra(monkeypatch, tree):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg._simplejpeg.cache_clear()
    with pytest.raises(InputError, match=r"needs simplejpeg: pip install 'eenet-jax\[imagenet\]'"):
        open_split(tree[1]).gather(np.arange(1))


def test_without_a_crop_photographs_have_their_usual_size():
    assert datasets.get_configured(DataConfig(dataset=NAME)).image_shape == (224, 224, 3)
