"""Memory that one step frees is kept for the next, on a CPU."""

import ctypes
import sys

import jax

# Of glibc's malloc.h. -1 is the greatest value: nothing is given back.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_OPTIONS = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}


def keep_memory() -> bool:
    """Have this process keep what its programs free, where it trains on a CPU by glibc.

    A program takes its temporaries, gigabytes of a training step, at once and gives them back at
    its end. glibc returns them to the system, which clears every page before it hands it out
    again: a third of a step's time (ResNet-56 with three exits, batch 128, two cores). It keeps
    only what the main thread takes, so programs are told to run in the thread that calls them;
    JAX hears that before its first use of a CPU, and no later.

    Returns:
      Whether that is so now. Beside an accelerator the memory is left as it is; where there is no
      glibc, how programs run too.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt if sys.platform.startswith("linux") else None
    except (AttributeError, OSError):
        mallopt = None
    if mallopt is None:
        return False
    # Before JAX is asked what there is, which settles it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() != "cpu":
        return False
    taken = [mallopt(option, value) for option, value in _OPTIONS.items()]
    return taken == [1] * len(taken)
