"""Images with their labels, in memory."""

import dataclasses

import numpy as np
from jaxtyping import Int32, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """A publisher's split, in the publisher's order.

    Attributes:
      images: uint8 [samples, height, width, channels].
      labels: int32 [samples].
    """

    images: UInt8[np.ndarray, "samples height width channels"]
    labels: Int32[np.ndarray, " samples"]
