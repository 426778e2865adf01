"""ImageNet's views of a photograph: random resized crops for training, centre crops otherwise."""

import dataclasses
import functools
import math
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from eenet_jax.data import jpeg
from eenet_jax.data.jpeg import Pixels, Scratch

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
# The short side before the centre crop, in units of the crop's: 256 for 224.
MARGIN = 256 / 224

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class CropDraws:
    """What is random in a batch's crops.

    Attributes:
      attempts: Uniform in [0, 1): area, ratio, top and left of each attempt, [batch, 10, 4].
      flips: Whether to mirror, [batch].
    """

    attempts: Float[np.ndarray, "batch attempts 4"]
    flips: Bool[np.ndarray, " batch"]


def draw_crops(draw: np.random.Generator, batch: int) -> CropDraws:
    """Draw all that a batch's crops need, whatever the images turn out to be."""
    return CropDraws(draw.random((batch, ATTEMPTS, 4)), draw.random(batch) < 0.5)


def crop_box(height: int, width: int, attempts: Float[np.ndarray, "attempts 4"]) -> Box:
    """A random crop: 8 to 100 % of the area, 3/4 to 4/3 as wide as high.

    Args:
      height: Of the image.
      width: Of the image.
      attempts: Of `CropDraws`; the first that fits the image counts, and where none does, the
        largest centre crop of an allowed ratio.

    Returns:
      (top, left, height, width).

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    lowest, highest = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio, top, left in attempts.tolist():
        pixels = height * width * (AREA[0] + area * (AREA[1] - AREA[0]))
        aspect = math.exp(lowest + ratio * (highest - lowest))
        crop_width, crop_height = (
            round(math.sqrt(pixels * aspect)),
            round(math.sqrt(pixels / aspect)),
        )
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return _centre_box(height, width)


def _centre_box(height: int, width: int) -> Box:
    crop_width = max(1, min(width, round(height * RATIO[1])))
    crop_height = max(1, min(height, round(width / RATIO[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def training_view(
    encoded: bytes,
    attempts: Float[np.ndarray, "attempts 4"],
    flip: bool,
    out: Pixels,
    scratch: Scratch | None = None,
) -> None:
    """Write a random crop, resized (bilinear) to fill `out`.

    Args:
      encoded: A whole file's bytes.
      attempts: See `crop_box`.
      flip: Whether to mirror it.
      out: uint8 [height, width, 3], to be filled.
      scratch: Memory for the decoded image.

    Raises:
      ValueError: the image is damaged.
    """
    header = jpeg.read_header(encoded)
    box = crop_box(header.height, header.width, attempts)
    # What shrinks to half or less is decoded at fewer pixels: faster, and free of aliasing.
    scale = max(out.shape[0] / box[2], out.shape[1] / box[3])
    least = (math.ceil(header.height * scale), math.ceil(header.width * scale))
    pixels = jpeg.decode(encoded, header, least=least if scale <= 0.5 else None, scratch=scratch)
    top, left, height, width = _rescaled(box, header, pixels)
    crop = pixels[top : top + height, left : left + width]
    cv2 = _cv2()
    cv2.resize(crop, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    if flip:
        cv2.flip(out, 1, dst=out)


def _rescaled(box: Box, header: jpeg.Header, pixels: Pixels) -> Box:
    """The box, in the pixels that were decoded."""
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (header.height, header.width):
        return box
    down, across = rows / header.height, columns / header.width
    height = min(rows, max(1, round(box[2] * down)))
    width = min(columns, max(1, round(box[3] * across)))
    top, left = round(box[0] * down), round(box[1] * across)
    return min(top, rows - height), min(left, columns - width), height, width


def evaluation_view(
    encoded: bytes, shape: tuple[int, int], scratch: Scratch | None = None
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The centre crop of the image, its short side resized (bilinear, antialiased) to 256/224 of
    the crop's.

    The same pixels as resizing and then cropping with Pillow, which published weights were
    evaluated with.

    Args:
      encoded: A whole file's bytes.
      shape: (height, width) of the crop.
      scratch: Memory for the decoded image.

    Raises:
      ValueError: the image is damaged.
    """
    header = jpeg.read_header(encoded)
    pixels = jpeg.decode(encoded, header, scratch=scratch)
    box = centre_region(header.height, header.width, shape)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box))


def centre_region(
    height: int, width: int, shape: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The part of an image that `evaluation_view` shows: (left, top, right, bottom) in pixels."""
    rows, columns = round(shape[0] * MARGIN), round(shape[1] * MARGIN)
    if rows * width >= columns * height:
        columns = rows * width // height
    else:
        rows = columns * height // width
    # In whole pixels of the resized image, as if it were made and then cropped.
    top, left = round((rows - shape[0]) / 2), round((columns - shape[1]) / 2)
    down, across = height / rows, width / columns
    right, bottom = (left + shape[1]) * across, (top + shape[0]) * down
    return left * across, top * down, min(right, width), min(bottom, height)


@functools.cache
def _cv2() -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise jpeg.missing_library("opencv-python-headless") from None
    # One process a core is the parallelism here; threads inside each would fight over the cores.
    cv2.setNumThreads(1)
    return cv2
