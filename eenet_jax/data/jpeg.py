"""Encoded photographs → RGB pixels: fast for ordinary JPEGs, careful with everything else.

simplejpeg (libjpeg-turbo) decodes what is an RGB or grey JPEG, and says when data is damaged where
others go on with grey blocks. Pillow takes the rest: CMYK, and PNGs that are called JPEG. The
orientation that a camera notes in EXIF is not applied, as is the practice with ImageNet.
"""

import dataclasses
import functools
import io
from types import ModuleType

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from eenet_jax.errors import InputError

Pixels = UInt8[np.ndarray, "height width 3"]

# A header of a few bytes can claim more memory than there is; ImageNet's largest has 61 million.
MOST_PIXELS = 2**28

_PLAIN_COLOURS = ("YCbCr", "RGB", "Gray")
# What libjpeg says where pixels are lost; its other complaints are of oddities without harm.
_DAMAGE = ("Premature end", "Corrupt JPEG data")
# Pillow's modes that it turns into RGB without clipping.
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image's first bytes say.

    Attributes:
      height: In pixels, as stored.
      width: In pixels, as stored.
      plain: Whether libjpeg-turbo gives RGB by itself.
    """

    height: int
    width: int
    plain: bool


class Scratch:
    """Memory that one decoded image after the other is written into."""

    def __init__(self):
        self._memory = np.empty(0, np.uint8)

    def room(self, size: int) -> UInt8[np.ndarray, " bytes"]:
        """At least `size` bytes; what was there before is overwritten."""
        if len(self._memory) < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory


def read_header(encoded: bytes) -> Header:
    """Height, width and kind of an encoded image.

    Args:
      encoded: A whole file's bytes.

    Raises:
      ValueError: this is no image, or one too large; the message says which.
    """
    library = _simplejpeg()
    try:
        height, width, colour, _ = library.decode_jpeg_header(encoded)
        header = Header(height, width, colour in _PLAIN_COLOURS)
    except ValueError:
        width, height = _pillow(encoded).size
        header = Header(height, width, False)
    if not 0 < header.height * header.width <= MOST_PIXELS:
        raise ValueError(f"{header.width} by {header.height} pixels")
    return header


def decode(
    encoded: bytes,
    header: Header,
    *,
    least: tuple[int, int] | None = None,
    scratch: Scratch | None = None,
) -> Pixels:
    """An encoded image's pixels.

    Args:
      encoded: A whole file's bytes.
      header: From `read_header`.
      least: (height, width) that are enough: the result may be smaller than the image by a factor
        of 2 or more, but not than this; None for the whole resolution.
      scratch: Where the result may lie; it is then overwritten by the next.

    Returns:
      uint8 [height, width, 3] in RGB.

    Raises:
      ValueError: the data is damaged or of an unknown kind; the message says how.
    """
    if not header.plain:
        return _decode_carefully(encoded)
    height, width = least or (0, 0)  # Which asks for the whole resolution.
    factor = 2 if least else 1
    library = _simplejpeg()
    room = None if scratch is None else scratch.room(3 * header.height * header.width)
    try:
        return library.decode_jpeg(
            encoded, "RGB", buffer=room, min_height=height, min_width=width, min_factor=factor
        )
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise
    return _decode_carefully(encoded)


def _decode_carefully(encoded: bytes) -> Pixels:
    image = _pillow(encoded)
    if image.mode not in _EIGHT_BIT:
        raise ValueError(f"pixels of kind {image.mode}, not 8 bits a channel")
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from None
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _pillow(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
    except UnidentifiedImageError:
        # Pillow's own message names an object in memory.
        raise ValueError("no JPEG or PNG image" if encoded else "an empty file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


@functools.cache
def _simplejpeg() -> ModuleType:
    try:
        import simplejpeg
    except ImportError:
        raise missing_library("simplejpeg") from None
    return simplejpeg


def missing_library(name: str) -> InputError:
    """The error where one of the extra's libraries isn't installed."""
    return InputError(f"reading photographs needs {name}: pip install 'eenet-jax[imagenet]'")
