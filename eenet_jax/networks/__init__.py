"""Multi-exit networks: K backbone stages and K exit heads behind one contract."""

from eenet_jax.networks.contract import MultiExitNetwork, Variables
from eenet_jax.networks.zoo import build, names

__all__ = ["MultiExitNetwork", "Variables", "build", "names"]
