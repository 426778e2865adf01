"""Published weights for tests: every tensor follows from its name."""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: drawn from a generator seeded by the name's CRC-32."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = 0.5 + draw.random(shape)
    elif name.endswith("running_mean"):
        value = 0.1 * draw.standard_normal(shape)
    elif len(shape) >= 2 and "embeddings" in name:
        value = 0.5 * draw.standard_normal(shape)
    elif len(shape) >= 2:
        value = draw.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):
        value = 0.8 + 0.4 * draw.random(shape)
    else:
        value = 0.1 * draw.standard_normal(shape)
    return np.asarray(value, np.float32)


def state_dict(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Names and PyTorch shapes → tensors."""
    return {name: tensor(name, tuple(shape)) for name, shape in tensors}


def golden(name: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """What the published network of that name computes.

    Returns:
      Its logits [exits, batch, classes], its weights, its input NHWC, and its settings.
    """
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        logits, meta = archive["logits"], json.loads(str(archive["meta"]))
        weights = state_dict(json.loads(str(archive["state_dict"])))
    draw = np.random.default_rng(meta["input_seed"])
    images = draw.standard_normal(meta["input_shape"]).astype(np.float32)
    return logits, weights, images, meta
