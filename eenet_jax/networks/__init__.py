"""Multi-exit networks: K backbone stages and K exit heads behind one contract."""

from eenet_jax.networks.contract import MultiExitNetwork, Part, Variables
from eenet_jax.networks.huggingface import FINE_TUNING_SETTINGS, from_huggingface
from eenet_jax.networks.zoo import build, names

__all__ = [
    "FINE_TUNING_SETTINGS",
    "MultiExitNetwork",
    "Part",
    "Variables",
    "build",
    "from_huggingface",
    "names",
]
