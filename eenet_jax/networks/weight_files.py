"""Weight files of other frameworks → published names and arrays. PyTorch is imported here alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from eenet_jax.errors import InputError

# Where training scripts put the weights inside a checkpoint.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors in a `.safetensors` or `.npz` file, or in PyTorch's own format.

    PyTorch's format needs the `torch` extra; it is read with `weights_only=True`, so that no code
    in the file is run. A checkpoint that holds more than the weights is looked into.

    Args:
      path: The file.

    Returns:
      Names as stored → arrays.

    Raises:
      InputError: the file is missing, damaged, of an unknown kind, or holds no weights; PyTorch is
        not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at '{path}': check the path")
    readers = {".safetensors": load_file, ".npz": _read_npz}
    try:
        return readers.get(path.suffix, _read_torch)(path)
    except InputError:
        raise
    except Exception as error:  # Whatever a damaged or foreign file makes the libraries raise.
        reason = str(error)[:200] or type(error).__name__
        raise InputError(f"'{path}' is no readable file of weights ({reason})") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"'{path}' is in PyTorch's format: pip install 'eenet-jax[torch]', or save the weights"
            " as safetensors"
        ) from None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "Weights only load failed" not in str(error):
            raise
        raise InputError(
            f"'{path}' is damaged, or holds objects that could run code, which are never loaded:"
            " save its state dict alone"
        ) from None
    tensors = _state_dict(path, stored, torch.Tensor)
    return {name: _as_array(tensor) for name, tensor in tensors.items()}


def _state_dict(path: Path, stored: Any, tensor: type) -> Mapping[str, Any]:
    """The weights themselves, out of what a training script wrapped around them."""
    for _ in WRAPPINGS:
        if not isinstance(stored, Mapping):
            break
        tensors = bool(stored) and all(isinstance(value, tensor) for value in stored.values())
        if tensors and all(isinstance(name, str) for name in stored):
            return stored
        stored = next((stored[key] for key in WRAPPINGS if key in stored), stored)
    found = ", ".join(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
    raise InputError(
        f"'{path}' holds no state dict (it has {found[:200] or 'nothing'}): save the weights alone,"
        f" or under '{WRAPPINGS[0]}'"
    )


def _as_array(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16; counters keep their integers.
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
