"""How long a training step takes beside PyTorch's, and what feeding and saving add to it.

Command:
    python experiments/benchmarks/training.py [--network resnet56_3] [--batch 128] [--repeats 7]
        [--write docs/training.md]

One step is: normalise a batch of CIFAR-sized images, run all exits in training mode, the joint
loss, its gradients, and SGD with momentum and weight decay. PyTorch (extra `torch`) does the same
with the same network, weights, loss and optimizer, in both memory layouts, step by step in turn;
that both compute the same is checked by the loss of a batch before and after a step on it. Each
trains in a process of its own, for each has its own way with memory, and they take turns of
three steps, of which the last is timed, with a pause in between: PyTorch's threads wait actively
for a moment after each. PyTorch is run as it comes, this package as `eenet train` runs it; the
memory that both need should be free. Peak memory is what the process took beyond what it had
before its first step; on a GPU, where the losses are compared without TF32's rounding, it is what
was in use on the device, weights and those first steps included. The input pipeline is timed
alone; a checkpoint by how long it and the step that follows it hold training up.

It takes three minutes; without PyTorch the step is timed alone. The last line is JSON with every
figure by name.
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eenet_jax import networks
from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig
from eenet_jax.data import datasets, inputs, pipeline
from eenet_jax.data.images import ImageSplit
from eenet_jax.environment import device_name
from eenet_jax.errors import InputError, told_in_one_line
from eenet_jax.report.report import update_readme
from eenet_jax.timing import measure
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.memory import keep_memory
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.sharding import make_layout
from eenet_jax.training.state import create_state
from eenet_jax.training.step import make_train_step

LOSS_TOLERANCE = 1e-3
"""Of a batch's loss before and after a step on it, relative; a step changes it by far more."""
PAUSE_SECONDS = 0.3
CHECKED_STEPS, WARM_STEPS = 2, 2
LAYOUTS = {"torch_channels_last": True, "torch_contiguous": False}
LABELS = {
    "ours": "eenet_jax",
    "torch_channels_last": "PyTorch, channels last",
    "torch_contiguous": "PyTorch, contiguous",
}
SAMPLES = 10_000


def config_of(network: str, batch_size: int) -> ExperimentConfig:
    """CIFAR-10's recipe without augmentation and distillation."""
    return ExperimentConfig(
        name="benchmark",
        data=DataConfig(dataset="cifar10", batch_size=batch_size, augmentation="none"),
        network=NetworkConfig(name=network),
        training=TrainingConfig(
            schedule="cosine", learning_rate=0.001, distillation_weight=0.0, weight_decay=5e-4
        ),
    )


class Ours:
    """The training step of this package, on one device."""

    def __init__(self, config: ExperimentConfig):
        self.layout = make_layout(devices=jax.devices()[:1])
        self.network = networks.build(config.network.name)
        self.made = optimizer(config.training, 1000)
        spec = datasets.get("cifar10")
        self.step = make_train_step(self.network, self.made, config, spec, 10**6, self.layout)
        self.state = self.layout.distributed(
            create_state(self.network.init, self.made, jax.random.key(0))
        )
        self.size = config.data.batch_size

    def train(self, batch: dict[str, np.ndarray]) -> float:
        """One step; its loss."""
        self.state, metrics = self.step(self.state, self.layout.placed(batch, self.size))
        return float(metrics["loss"])

    def precisely(self) -> contextlib.AbstractContextManager:
        """In which products are not rounded."""
        return jax.default_matmul_precision("highest")

    def peak_bytes(self) -> int:
        """Of the accelerator's memory, so far."""
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def random_batch(size: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "image": draw.integers(0, 256, (size, 32, 32, 3)).astype(np.uint8),
        "label": draw.integers(0, 10, size).astype(np.int32),
    }


class Trainer:
    """A process that takes a step when it is told to."""

    def __init__(self, name: str, given: argparse.Namespace):
        options = ["--network", given.network, "--batch", str(given.batch), "--alone", name]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """The loss of the batch, before the step; its seconds; peak memory so far."""
        assert self._process.stdin
        assert self._process.stdout
        print(file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """No more steps."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _torch(ours: Ours, config: ExperimentConfig, channels_last: bool) -> Any:
    # Not where it isn't used: whatever else a process loads can change how it fares.
    from torch_training import TorchStep

    return TorchStep(ours.network, ours.state.variables, config, channels_last=channels_last)


def serve(name: str, config: ExperimentConfig) -> None:
    """Take steps as they are asked for on the standard input."""
    batch = random_batch(config.data.batch_size)
    ours = Ours(config)
    trainer = ours if name == "ours" else _torch(ours, config, LAYOUTS[name])
    on_a_cpu, before = jax.default_backend() == "cpu", _memory_bytes("VmRSS")
    for number, _ in enumerate(sys.stdin):
        checked = number < CHECKED_STEPS and not on_a_cpu
        began = time.perf_counter()
        # A GPU rounds what it multiplies, each library in its own way: not where losses are held
        # against one another.
        with trainer.precisely() if checked else contextlib.nullcontext():
            loss = trainer.train(batch)
        seconds = time.perf_counter() - began
        peak = _memory_bytes("VmHWM") - before if on_a_cpu else trainer.peak_bytes()
        print(json.dumps({"loss": loss, "seconds": seconds, "peak_bytes": peak}), flush=True)


def step_figures(names: list[str], given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians and spreads of steps in turn; raises where two don't compute the same."""
    trainers = {name: Trainer(name, given) for name in names}
    seen = {
        name: [each.step()["loss"] for _ in range(CHECKED_STEPS)] for name, each in trainers.items()
    }
    before, after = seen["ours"]
    assert abs(after - before) > 10 * LOSS_TOLERANCE * before
    for name in names[1:]:
        np.testing.assert_allclose(seen[name], seen["ours"], rtol=LOSS_TOLERANCE)
    taken = {name: [] for name in names}
    for _ in range(given.repeats):
        for name, each in trainers.items():
            time.sleep(PAUSE_SECONDS)
            # As in training, where one step follows another: what a process had in the caches, and
            # in memory that the system counts as used, was lost while the others ran. And a GPU's
            # step is compiled anew after those that were checked.
            for _ in range(WARM_STEPS):
                each.step()
            taken[name].append(each.step())
    for each in trainers.values():
        each.end()
    figures = {}
    for name, steps in taken.items():
        seconds = [step["seconds"] for step in steps]
        figures[name] = {
            "median_s": float(np.median(seconds)),
            "spread_s": max(seconds) - min(seconds),
            "peak_bytes": steps[-1]["peak_bytes"],
        }
    return figures


def _memory_bytes(name: str) -> int:
    """Of this process on a CPU, as Linux says: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def pipeline_figures(config: ExperimentConfig) -> dict[str, float]:
    """Images a second of reading, and of CIFAR-10's own augmentation on the device."""
    spec, draw = datasets.get("cifar10"), np.random.default_rng(0)
    split = ImageSplit(
        spec=spec,
        split="train",
        ids=np.arange(SAMPLES),
        images=draw.integers(0, 256, (SAMPLES, 32, 32, 3)).astype(np.uint8),
        labels=draw.integers(0, 10, SAMPLES).astype(np.int32),
    )
    size = config.data.batch_size
    batches = pipeline.train_batches(split, batch_size=size, seed=0)
    read = measure(lambda: next(batches), 101).median_s
    data = DataConfig(dataset="cifar10")
    augment = jax.jit(lambda key, batch: inputs.training_inputs(key, batch, spec, data)[0])
    batch, key = {name: next(batches)[name] for name in ("image", "label")}, jax.random.key(0)
    augmented = measure(lambda: augment(key, batch), 21).median_s
    return {"read_images_per_s": size / read, "augmented_images_per_s": size / augmented}


def checkpoint_figures(ours: Ours, batch: dict[str, np.ndarray], repeats: int) -> dict[str, float]:
    """Seconds that a save holds up training: in the call, and in the step after it."""
    called, after, plain = [], [], []
    saved = {"network": describe(ours.network)}
    ours.train(batch)
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(Path(folder) / "checkpoints", 2, print) as checkpoints,
    ):
        for _ in range(repeats):
            plain.append(_seconds(lambda: ours.train(batch)))
            called.append(_seconds(lambda: checkpoints.save(ours.state, {"next_index": 0}, saved)))
            after.append(_seconds(lambda: ours.train(batch)))
            checkpoints.wait()
    return {
        "save_call_s": float(np.median(called)),
        "step_after_s": float(np.median(after)),
        "step_s": float(np.median(plain)),
        "lost_s": float(np.median(np.add(called, after)) - np.median(plain)),
    }


def _seconds(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    ours = figures["step"]["ours"]["median_s"]
    lines = [
        f"{figures['network']}, batch {figures['batch']}, median of {figures['repeats']} steps in"
        f" turn, {figures['device']}:",
        "",
        "| | s a step | greatest - least, s | eenet_jax over it | GB at its peak |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, step in figures["step"].items():
        cells = (
            LABELS[name],
            f"{step['median_s']:.3f}",
            f"{step['spread_s']:.3f}",
            f"{ours / step['median_s']:.2f}",
            f"{step['peak_bytes'] / 1e9:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    pipeline, saved = figures["pipeline"], figures["checkpoint"]
    lines += [
        "",
        f"The step takes {figures['images_per_s']:,.0f} images a second. One core reads"
        f" {pipeline['read_images_per_s']:,.0f} of them, shuffled and in batches; the device"
        f" augments {pipeline['augmented_images_per_s']:,.0f}. A checkpoint holds training up by"
        f" {saved['lost_s']:.2f} s: {saved['save_call_s']:.2f} s in the call, and the rest while it"
        " is written beside the next step, on the same cores.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network = "of the family resnet; resnet56_3 unless given"
    parser.add_argument("--network", default="resnet56_3", help=network)
    parser.add_argument("--batch", type=int, default=128, help="samples in a step, 128")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps, 7; medians count")
    parser.add_argument("--write", type=Path, help="Markdown file whose marked table is replaced")
    parser.add_argument("--alone", choices=["ours", *LAYOUTS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    config = config_of(given.network, given.batch)
    if given.alone in (None, "ours"):
        keep_memory()  # As training does.
    if given.alone:
        serve(given.alone, config)
        return
    beside = importlib.util.find_spec("torch") is not None
    if given.write and not beside:
        raise InputError(f"--write {given.write} takes PyTorch: pip install -e '.[torch]'")
    names = ["ours", *(LAYOUTS if beside else ())]
    figures: dict[str, Any] = {"device": device_name(), "network": given.network}
    figures["batch"], figures["repeats"] = given.batch, given.repeats
    figures["step"] = step_figures(names, given)
    for name, step in figures["step"].items():
        print(
            f"{name:<20} {step['median_s']:.3f} s a step (spread {step['spread_s']:.3f} s),"
            f" {step['peak_bytes'] / 1e9:.2f} GB at its peak"
        )
    ours = figures["step"]["ours"]["median_s"]
    for name in names[1:]:
        ratio = figures[f"ours_over_{name}"] = ours / figures["step"][name]["median_s"]
        print(f"ours over {name}: {ratio:.2f}")
    figures["pipeline"] = pipeline_figures(config)
    figures["images_per_s"] = given.batch / ours
    for name, rate in figures["pipeline"].items():
        times = rate / figures["images_per_s"]
        print(f"{name} {rate:,.0f}: {times:,.0f} times what the step takes")
    batch = random_batch(given.batch)
    figures["checkpoint"] = checkpoint_figures(Ours(config), batch, given.repeats)
    print(f"a checkpoint costs {1e3 * figures['checkpoint']['lost_s']:.0f} ms of training")
    if given.write:
        update_readme(given.write, "training", table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    with told_in_one_line("training.py"):
        main()
