"""Mean and deviation per channel."""

import numpy as np
from jaxtyping import UInt8

_LEVELS = 256


def channel_statistics(
    images: UInt8[np.ndarray, "samples height width channels"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all samples and pixels.

    Exact sums over a histogram of the 256 grey levels, rounded to six decimals.

    Args:
      images: The training split.

    Returns:
      (mean, deviation), in units in which the greatest pixel value is 1.
    """
    pixels = images.reshape(-1, images.shape[-1])
    counts = np.stack([np.bincount(column, minlength=_LEVELS) for column in pixels.T])
    levels = np.arange(_LEVELS) / (_LEVELS - 1)
    mean = counts @ levels / len(pixels)
    deviation = np.sqrt(counts @ levels**2 / len(pixels) - mean**2)
    return _rounded(mean), _rounded(deviation)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
