"""A training of twenty steps as a process of its own, on fake devices; prints its losses as JSON.

    python curve.py VARIANTS [HOST:PORT PROCESSES PROCESS]

VARIANTS is a JSON list of objects with any of: `devices`, `fsdp`, `network` ("cnn", or "bert",
which has no BatchNorm, or "dropping", that with dropout), `training` (settings), `learning_rate`,
`steps`, `save` (a folder to write the last state to), `restore` (one to begin from), `evaluate`
(whether the validation loss and accuracies follow the losses).
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_run import tiny_config

from eenet_jax import networks
from eenet_jax.data import datasets, pipeline
from eenet_jax.training import processes
from eenet_jax.training.checkpoint import Checkpoints, describe
from eenet_jax.training.loop import evaluate
from eenet_jax.training.optimizer import optimizer
from eenet_jax.training.sharding import make_layout
from eenet_jax.training.state import create_state
from eenet_jax.training.step import make_eval_step, make_train_step

BATCH_SIZE = 48
EPOCH_STEPS = 5
TOKENS = 6


class Numbers:
    """Twenty times a batch of random token ids, to have a network without BatchNorm."""

    def __init__(self, rows):
        self.rows, self.step = rows, 0

    def __next__(self):
        draw = np.random.default_rng(self.step)
        self.step += 1
        return {
            "input_ids": draw.integers(1, 50, (BATCH_SIZE, TOKENS)).astype(np.int32)[self.rows],
            "attention_mask": np.ones((BATCH_SIZE, TOKENS), np.int32)[self.rows],
            "label": draw.integers(0, 2, BATCH_SIZE).astype(np.int32)[self.rows],
        }

    def get_state(self):
        return {"next_index": self.step}

    def set_state(self, state):
        self.step = state["next_index"]


def made(name: str, rows) -> tuple[Any, Any, Any]:
    """Network, data set and batches."""
    if name == "cnn":
        split = datasets.open_split("digits", "train", val_size=1200)
        network = networks.build("cnn", widths=(8, 16), depths=(1, 1), strides=(2, 1))
        batches = pipeline.train_batches(split, batch_size=BATCH_SIZE, seed=0, rows=rows)
        return network, split.spec, batches
    network = networks.build(
        "bert",
        layers=2,
        width=32,
        heads=2,
        mlp_width=32,
        vocab_size=50,
        max_positions=8,
        exit_after=(1,),
        dropout=0.3 if name == "dropping" else 0.0,
        num_classes=2,
    )
    return network, datasets.get("sst2"), Numbers(rows)


def curve(variant: dict[str, Any]) -> list[float]:
    """The loss of every step."""
    count = variant.get("devices") or len(jax.devices())
    layout = make_layout(variant.get("fsdp", 1), jax.devices()[:count])
    rate = variant.get("learning_rate", 0.1)
    settings = {"learning_rate": rate, "ema_decay": 0.9, "clip_norm": 5.0}
    config = tiny_config(**settings, **variant.get("training", {}))
    layout.check_batch(BATCH_SIZE, config.training.micro_batches)
    network, spec, batches = made(variant.get("network", "cnn"), layout.rows(BATCH_SIZE))
    moved = optimizer(config.training, EPOCH_STEPS)

    def create():
        state = create_state(network.init, moved, jax.random.key(0), averages=True)
        wide = np.float64 if jax.config.jax_enable_x64 else np.float32
        return jax.tree.map(
            lambda leaf: leaf.astype(wide) if leaf.dtype == np.float32 else leaf, state
        )

    step = make_train_step(network, moved, config, spec, 20, layout)
    if "restore" in variant:
        with Checkpoints(Path(variant["restore"]), 2, print) as checkpoints:
            shapes = layout.abstract(jax.eval_shape(create))
            state, _ = checkpoints.restore(shapes, network, batches)
    else:
        state = layout.distributed(create())
    losses = []
    for _ in range(variant.get("steps", 20)):
        state, metrics = step(state, layout.placed(next(batches), BATCH_SIZE))
        losses.append(float(metrics["loss"]))
    if "save" in variant:
        with Checkpoints(Path(variant["save"]), 2, print) as checkpoints:
            checkpoints.save(state, batches.get_state(), {"network": describe(network)})
    if variant.get("evaluate"):
        split = datasets.open_split("digits", "val", val_size=1200)
        measured = make_eval_step(network, config, spec, layout)
        # A batch that doesn't divide, of samples that don't either: padded, and masked.
        found = evaluate(measured, state.variables, split, 333, layout)
        losses += [found["loss"], *found["accuracy"]]
    return losses


def main() -> None:
    """Run the variants, one after the other."""
    variants, *others = sys.argv[1:]
    address, count, number = others or (None, None, None)
    numbers = (count and int(count), number and int(number))
    with processes.joined(False, address, *numbers):
        found = [curve(variant) for variant in json.loads(variants)]
        processes.say(json.dumps(found))


if __name__ == "__main__":
    main()
