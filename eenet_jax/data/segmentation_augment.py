"""Augmentation of images whose pixels have labels, on the device: pure, jittable functions."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32, Key, UInt8

from eenet_jax.data.builders.segmentation_tree import IGNORED
from eenet_jax.errors import InputError
from eenet_jax.types import Array

LEAST_SCALE, GREATEST_SCALE = 0.5, 2.0

AUGMENTATIONS = ("none", "scale_crop_flip")

Images = UInt8[Array, "batch height width 3"]
Labels = Int32[Array, "batch height width"]
Draws = tuple[Float[Array, " batch"], Float[Array, "batch 2"], Bool[Array, " batch"]]


def augment(
    key: Key[Array, ""], images: Images, labels: Labels, name: str, crop_shape: tuple[int, ...]
) -> tuple[
    UInt8[Array, "batch crop_height crop_width 3"], Int32[Array, "batch crop_height crop_width"]
]:
    """Augment every image of a training batch, and its labels with it, on its own draw.

    Args:
      key: A PRNG key, fresh for every step.
      images: uint8 [batch, height, width, 3].
      labels: int32 [batch, height, width], -1 where there is none.
      name: "scale_crop_flip" (scaled by a factor uniform in 0.5 to 2, a random crop, flipped
        left to right half the time: the recipe published with HRNet, its steps of 0.1 made
        continuous) or "none".
      crop_shape: (height, width) of the crop; the image's own where empty.

    Returns:
      The crops and their labels. Pixels are interpolated linearly, labels taken from the nearest
      pixel; what lies outside the image is black and has label -1.

    Raises:
      InputError: an unknown name, or a crop asked of "none".
    """
    if name not in AUGMENTATIONS:
        raise InputError(f"unknown augmentation '{name}': choose from {', '.join(AUGMENTATIONS)}")
    if name == "scale_crop_flip":
        return scale_crop_flip(draws(key, len(images)), images, labels, crop_shape)
    if crop_shape:
        raise InputError(f"crop_shape {crop_shape} with augmentation 'none': leave one of them out")
    return images, labels


def draws(key: Key[Array, ""], batch: int) -> Draws:
    """Each image's scale; its crop's (row, column) place, each 0..1; and whether to flip it."""
    scale_key, place_key, flip_key = jax.random.split(key, 3)
    scales = jax.random.uniform(scale_key, (batch,), minval=LEAST_SCALE, maxval=GREATEST_SCALE)
    places = jax.random.uniform(place_key, (batch, 2))
    return scales, places, jax.random.bernoulli(flip_key, shape=(batch,))


def scale_crop_flip(
    drawn: Draws, images: Images, labels: Labels, crop_shape: tuple[int, ...]
) -> tuple[
    UInt8[Array, "batch crop_height crop_width 3"], Int32[Array, "batch crop_height crop_width"]
]:
    """`augment` at given draws: see there.

    The crop lies wholly in the scaled image where that is larger, and wholly around it where it
    is smaller; its place is 0 at the one end of what is possible and 1 at the other.
    """
    scales, places, flips = drawn
    height, width = images.shape[1:3]
    crop_height, crop_width = crop_shape or (height, width)
    rows = _source(scales, places[:, 0], height, crop_height)
    columns = _source(scales, places[:, 1], width, crop_width)
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns)
    # An image is sampled on a grid: what lies outside is decided row by row, column by column.
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
    pixels = jnp.where(inside[..., None], _linear(images, rows, columns), 0)
    return pixels.astype(images.dtype), jnp.where(inside, _nearest(labels, rows, columns), IGNORED)


def _source(
    scales: Float[Array, " batch"], places: Float[Array, " batch"], size: int, crop: int
) -> Float[Array, "batch crop"]:
    """Where the crop's pixels lie along one axis of the image, in its pixels; 0 is a centre."""
    starts = places * (scales * size - crop)
    scaled = starts[:, None] + jnp.arange(crop)[None] + 0.5
    return scaled / scales[:, None] - 0.5


def _inside(places: Float[Array, "batch crop"], size: int) -> Bool[Array, "batch crop"]:
    return (places >= -0.5) & (places < size - 0.5)


def _linear(
    images: Images,
    rows: Float[Array, "batch crop_height"],
    columns: Float[Array, "batch crop_width"],
) -> Float[Array, "batch crop_height crop_width 3"]:
    above, below, down = _neighbours(rows, images.shape[1])
    left, right, along = _neighbours(columns, images.shape[2])
    down, along = down[:, :, None, None], along[:, None, :, None]

    def blended(row):
        at_left, at_right = (_at(images, row, column) for column in (left, right))
        return at_left * (1 - along) + at_right * along

    return jnp.round(blended(above) * (1 - down) + blended(below) * down)


def _neighbours(
    places: Float[Array, "batch crop"], size: int
) -> tuple[Int[Array, "batch crop"], Int[Array, "batch crop"], Float[Array, "batch crop"]]:
    """The pixels before and after each place, and its distance from the one before."""
    places = jnp.clip(places, 0, size - 1)
    before = jnp.floor(places).astype(jnp.int32)
    return before, jnp.minimum(before + 1, size - 1), places - before


def _nearest(
    labels: Labels,
    rows: Float[Array, "batch crop_height"],
    columns: Float[Array, "batch crop_width"],
) -> Int32[Array, "batch crop_height crop_width"]:
    nearest = [
        jnp.clip(jnp.floor(places + 0.5), 0, size - 1).astype(jnp.int32)
        for places, size in ((rows, labels.shape[1]), (columns, labels.shape[2]))
    ]
    return _at(labels, *nearest)


def _at(array, rows: Int[Array, "batch crop_height"], columns: Int[Array, "batch crop_width"]):
    # Image by image, so that devices which share a batch need nothing of each other's.
    return jax.vmap(lambda each, r, c: each[r[:, None], c[None]])(array, rows, columns)
