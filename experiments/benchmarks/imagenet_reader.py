"""Images a second and core: the whole ImageNet reader beside nothing but decoding, in one run.

Command:
    python experiments/benchmarks/imagenet_reader.py FOLDER

FOLDER holds a folder a class, such as ImageNet's `val/`; a few thousand images will do, once the
disk's cache holds them. "Decode" is simplejpeg's full decode of a file's bytes, read beforehand, to
an RGB array of its own: no crop, no resize, no batch. "Reader" is `pipeline.train_batches` on the
same files: reading them, random resized crops of 224 pixels, flips and batches, in line and through
reading processes. The two take turns; rates are medians over the turns. Processor time leaves out
what other programs take from the machine, so its ratio is the one to trust; `reader_over_decode`
is that. `--enlarge 1.5` makes images that have been shrunk to a short side of 256 about as large as
ImageNet's own.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np
import simplejpeg
from PIL import Image

from eenet_jax.config import DataConfig
from eenet_jax.data import datasets, pipeline
from eenet_jax.data.photographs import PhotographSplit

DATASET = "imagenet2012"
AHEAD = 6  # More batches than a worker makes before they are asked for.


@dataclasses.dataclass(frozen=True)
class Turn:
    """One timed pass.

    Attributes:
      images: How many were made.
      wall_s: Seconds by the clock.
      cpu_s: Seconds of processor time, over all processes.
    """

    images: int
    wall_s: float
    cpu_s: float


def processor_s(workers: list[int]) -> float:
    """Processor time of this process and those, user's and system's."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for pid in workers:
        # The fields after the name, which may hold spaces itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def children() -> list[int]:
    """Processes that this one has started."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def timed(images: int, work: Callable[[], None], workers: list[int]) -> Turn:
    wall, cpu = time.perf_counter(), processor_s(workers)
    work()
    return Turn(images, time.perf_counter() - wall, processor_s(workers) - cpu)


def decode_all(files: list[bytes]) -> None:
    for content in files:
        simplejpeg.decode_jpeg(content, "RGB")


def take(batches: grain.DatasetIterator, count: int) -> None:
    for _ in range(count):
        # As a training step does, look at every page of the batch.
        np.add.reduce(next(batches)["image"][:, ::16, ::16], axis=None, dtype=np.int64)


def open_tree(data_dir: Path, workers: int) -> PhotographSplit:
    settings = DataConfig(dataset=DATASET, workers=workers)
    split = datasets.open_split(DATASET, "train", data_dir=data_dir, val_size=0, settings=settings)
    assert isinstance(split, PhotographSplit)
    return split


def enlarge(folder: Path, factor: float, out: Path) -> None:
    """The images with their sides that many times as long, encoded again."""
    for path in folder.glob("*/*"):
        image = Image.open(path)
        width, height = round(factor * image.width), round(factor * image.height)
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        resized.save(out / path.parent.name / path.name, "JPEG", quality=92)


def prepare(folder: Path, work: Path) -> Path:
    """A tree whose two parts are both the folder, prepared as a user would."""
    for part in ("train", "val"):
        (work / part).symlink_to(folder.resolve())
    datasets.prepare(DATASET, data_dir=work / "data", source=work)
    return work / "data"


def turns(
    files: list[bytes], batches: grain.DatasetIterator, split: PhotographSplit, batch_size: int
) -> Iterator[tuple[Turn, Turn]]:
    """Decoding and reading as many images, again and again; the first turn warms up."""
    count = len(files) // batch_size
    while True:
        decoded = timed(len(files), lambda: decode_all(files), [])
        # What workers have made meanwhile is not of the time that follows.
        take(batches, AHEAD * split.workers)
        yield decoded, timed(count * batch_size, lambda: take(batches, count), children())


def rates(pairs: list[tuple[Turn, Turn]], name: str) -> dict[str, float]:
    """Images a second of processor time and by the clock, and the reader's share of decoding."""
    cpu = [(d.images / d.cpu_s, r.images / r.cpu_s) for d, r in pairs]
    wall = [(d.images / d.wall_s, r.images / r.wall_s) for d, r in pairs]
    ratios = sorted(reader / decode for decode, reader in cpu)
    return {
        f"{name}_decode_per_cpu_s": statistics.median(decode for decode, _ in cpu),
        f"{name}_reader_per_cpu_s": statistics.median(reader for _, reader in cpu),
        f"{name}_decode_per_wall_s": statistics.median(decode for decode, _ in wall),
        f"{name}_reader_per_wall_s": statistics.median(reader for _, reader in wall),
        f"{name}_reader_over_decode": statistics.median(ratios),
        f"{name}_reader_over_decode_least": ratios[0],
        f"{name}_reader_over_decode_most": ratios[-1],
    }


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def describe(files: list[bytes]) -> dict[str, float | int | str]:
    """What was read, and where."""
    sizes = np.asarray([simplejpeg.decode_jpeg_header(content)[:2] for content in files])
    return {
        "device": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "images": len(files),
        "mean_kilobytes": statistics.mean(map(len, files)) / 1e3,
        "mean_megapixels": float(sizes.prod(1).mean()) / 1e6,
    }


def measure(
    data_dir: Path, workers: int, batch_size: int, repeats: int
) -> dict[str, float | int | str]:
    in_line, ahead = (open_tree(data_dir, count) for count in (0, workers))
    files = [image.content for image in in_line.store.read(in_line.ids)]
    found = {**describe(files), "batch_size": batch_size, "repeats": repeats, "workers": workers}
    for name, split in (("in_line", in_line), ("workers", ahead)):
        batches = pipeline.train_batches(split, batch_size=batch_size, seed=0)
        pairs = list(itertools.islice(turns(files, batches, split, batch_size), 1, repeats + 1))
        found |= rates(pairs, name)
        batches.close()
        shown = {key: value for key, value in found.items() if key.startswith(f"{name}_")}
        print("\n".join(f"{key:<36} {value:10.3f}" for key, value in shown.items()))
    return found


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds a folder a class")
    parser.add_argument("--workers", type=int, default=1, help="reading processes")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7, help="timed turns of each")
    parser.add_argument("--enlarge", type=float, default=1.0, help="every side, that many times")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = given.folder
        if given.enlarge != 1:
            folder = Path(work) / "enlarged"
            enlarge(given.folder, given.enlarge, folder)
        data_dir = prepare(folder, Path(work))
        found = measure(data_dir, given.workers, given.batch_size, given.repeats)
    print(json.dumps({**found, "enlarge": given.enlarge}))


if __name__ == "__main__":
    main()
