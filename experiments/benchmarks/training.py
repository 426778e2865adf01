"""How long a training step takes beside PyTorch's, and what feeding and saving add to it.

Command:
    python experiments/benchmarks/training.py [--network resnet56_3] [--batch 128] [--repeats 7]

One step is: normalise a batch of CIFAR-sized images, run all exits in training mode, the joint
loss, its gradients, and SGD with momentum and weight decay. PyTorch (extra `torch`) does the same
with the same network, weights, loss and optimizer, in both memory layouts, step by step in turn;
that both compute the same is checked by their losses, at a rate that is too small for rounding to
grow. PyTorch's threads are told to wait passively, for they would take the cores from whoever comes
next. Peak memory is that of a process that does
nothing else. The input pipeline is timed alone; a checkpoint by how long it and the step that
follows it hold training up.

The last line is JSON with every figure by name.
"""

import argparse
import json
import os
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
from eenet_jax.timing import measure, measure_in_turn
from eenet_jax.training import losses
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.memory import keep_memory
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.sharding import make_layout
from eenet_jax.training.state import create_state
from eenet_jax.training.step import make_train_step

try:
    import torch
    import torch_networks
except ModuleNotFoundError:
    torch = None

LOSS_TOLERANCE = 1e-4
"""Of the losses of the first steps, relative."""
COMPARED_STEPS = 3
LAYOUTS = {"torch_channels_last": True, "torch_contiguous": False}
SAMPLES = 10_000


def config_of(network: str, batch_size: int) -> ExperimentConfig:
    """CIFAR-10's recipe without augmentation and distillation."""
    return ExperimentConfig(
        name="benchmark",
        data=DataConfig(dataset="cifar10", batch_size=batch_size, augmentation="none"),
        network=NetworkConfig(name=network),
        training=TrainingConfig(
            schedule="cosine", learning_rate=1e-6, distillation_weight=0.0, weight_decay=5e-4
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


class Torch:
    """The same in PyTorch, from the same weights."""

    def __init__(self, ours: Ours, config: ExperimentConfig, channels_last: bool):
        self.twin = torch_networks.torch_network(
            ours.network, ours.state.variables, channels_last=channels_last
        )
        self.twin.train().requires_grad_(True)
        training, self.channels_last = config.training, channels_last
        self.optimizer = torch.optim.SGD(
            self.twin.parameters(),
            training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        self.weights = np.asarray(losses.exit_weights("linear", ours.network.num_exits)).tolist()
        spec = datasets.get("cifar10")
        mean, std = (torch.tensor(each)[None, :, None, None] for each in (spec.mean, spec.std))
        self.mean, self.std = mean, std

    def train(self, batch: dict[str, np.ndarray]) -> float:
        """One step; its loss."""
        images = torch_networks.torch_input(batch["image"], channels_last=self.channels_last)
        labels = torch.tensor(batch["label"], dtype=torch.long)
        x = (images.float() / 255 - self.mean) / self.std
        entropy = torch.nn.functional.cross_entropy
        logits = self.twin.full(x)
        loss = sum(w * entropy(each, labels) for w, each in zip(self.weights, logits, strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def random_batches(batch_size: int, count: int) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [
        {
            "image": draw.integers(0, 256, (batch_size, 32, 32, 3)).astype(np.uint8),
            "label": draw.integers(0, 10, batch_size).astype(np.int32),
        }
        for _ in range(count)
    ]


def made_by_name(name: str, config: ExperimentConfig) -> Ours | Torch:
    """A trainer."""
    ours = Ours(config)
    return ours if name == "ours" else Torch(ours, config, LAYOUTS[name])


def step_seconds(config: ExperimentConfig, names: list[str], repeats: int) -> dict[str, Any]:
    """Medians and spreads of steps in turn; raises where two don't compute the same."""
    batches = random_batches(config.data.batch_size, COMPARED_STEPS)
    trainers = {name: made_by_name(name, config) for name in names}
    seen = {name: [each.train(batch) for batch in batches] for name, each in trainers.items()}
    for name in names[1:]:
        np.testing.assert_allclose(seen[name], seen["ours"], rtol=LOSS_TOLERANCE)
    calls = {name: (lambda each=each: each.train(batches[0])) for name, each in trainers.items()}
    return {
        name: {"median_s": timing.median_s, "spread_s": timing.spread_s}
        for name, timing in measure_in_turn(calls, repeats).items()
    }


def peak_bytes(name: str, given: argparse.Namespace) -> int:
    """Of a process of its own that takes a few steps, less what it has before the first."""
    command = [sys.executable, __file__, "--network", given.network, "--batch", str(given.batch)]
    ended = subprocess.run([*command, "--alone", name], check=True, capture_output=True, text=True)
    return int(ended.stdout.splitlines()[-1])


def alone(name: str, config: ExperimentConfig) -> None:
    """Take a few steps, and print how far memory rose."""
    trainer = made_by_name(name, config)
    before = _memory_bytes("VmRSS")
    for batch in random_batches(config.data.batch_size, COMPARED_STEPS):
        trainer.train(batch)
    print(_memory_bytes("VmHWM") - before)


def _memory_bytes(name: str) -> int:
    """Of this process, as Linux says: VmRSS now, VmHWM at its peak."""
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet56_3", help="of the family resnet")
    parser.add_argument("--batch", type=int, default=128, help="samples in a step")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps; medians count")
    parser.add_argument("--alone", choices=["ours", *LAYOUTS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    config = config_of(given.network, given.batch)
    keep_memory()  # As training does.
    if given.alone:
        alone(given.alone, config)
        return
    names = ["ours", *(LAYOUTS if torch is not None else ())]
    figures: dict[str, Any] = {"device": device_name(), "network": given.network}
    figures["batch"], figures["repeats"] = given.batch, given.repeats
    figures["step"] = step_seconds(config, names, given.repeats)
    for name, timing in figures["step"].items():
        print(f"{name:<20} {timing['median_s']:.3f} s a step (spread {timing['spread_s']:.3f} s)")
    ours = figures["step"]["ours"]["median_s"]
    for name in names[1:]:
        ratio = figures[f"ours_over_{name}"] = ours / figures["step"][name]["median_s"]
        print(f"ours over {name}: {ratio:.2f}")
    figures["peak_bytes"] = {name: peak_bytes(name, given) for name in names}
    for name, size in figures["peak_bytes"].items():
        print(f"{name:<20} {size / 1e9:.2f} GB at its peak")
    figures["pipeline"] = pipeline_figures(config)
    needed = figures["images_per_s"] = given.batch / ours
    for name, rate in figures["pipeline"].items():
        print(f"{name} {rate:,.0f}: {rate / needed:,.0f} times what the step takes")
    batch = random_batches(given.batch, 1)[0]
    figures["checkpoint"] = checkpoint_figures(Ours(config), batch, given.repeats)
    print(f"a checkpoint costs {1e3 * figures['checkpoint']['lost_s']:.0f} ms of training")
    print(json.dumps(figures))


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads it as the process starts.
        passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        os.execve(sys.executable, [sys.executable, *sys.argv], passive)
    main()
