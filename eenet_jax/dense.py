"""Dense prediction, image by image: what exits say of an image's pixels, in one row an image.

The paper names Cityscapes and HRNet but leaves open what leaves early. Here an image does, as a
whole: its softmax is the mean over its pixels, its confidence the mean of the pixels' measures,
and it is as right as the share of its labelled pixels that are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.confidence import measures_of
from eenet_jax.types import Array


def summarise(
    logits: Float[Array, "exits batch height width classes"],
    labels: Int[Array, "batch height width"],
) -> dict[str, Array]:
    """What `ExitPredictions` holds of a batch of images.

    Args:
      logits: Of every exit and pixel.
      labels: True classes; negative where a pixel has none.

    Returns:
      `probs` [exits, batch, classes] and `measures` [exits, batch, 5], means over all pixels;
      `correct` [exits, batch], the share of labelled pixels that are right; `confusion` int32
      [exits, batch, classes, classes], true by predicted, labelled pixels only.
    """
    probs, measures = all_image_means(logits)
    flat = labels.reshape(labels.shape[0], -1)
    counts = confusion(pixel_classes(logits), flat, logits.shape[-1])
    return {
        "probs": probs,
        "measures": measures,
        "correct": jnp.trace(counts, axis1=2, axis2=3) / jnp.maximum(counts.sum((2, 3)), 1),
        "confusion": counts,
    }


def all_image_means(
    logits: Float[Array, "exits batch height width classes"],
) -> tuple[Float[Array, "exits batch classes"], Float[Array, "exits batch 5"]]:
    """`image_means` of every exit."""
    classes = pixel_classes(logits)
    rows = [image_means(each, classes[: k + 1]) for k, each in enumerate(logits)]
    probs, measures = (jnp.stack(column) for column in zip(*rows, strict=True))
    return probs, measures


def pixel_classes(
    logits: Float[Array, "*batch height width classes"],
) -> Int[Array, "*batch pixels"]:
    """What is said of each pixel."""
    found = logits.argmax(-1)
    return found.reshape(*found.shape[:-2], -1)


def image_means(
    logits: Float[Array, "batch height width classes"], classes: Int[Array, "exits batch pixels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch 5"]]:
    """Means over each image's pixels at one exit.

    Args:
      logits: Of the exit.
      classes: What this exit and every earlier one says of each pixel.

    Returns:
      The softmax outputs' mean, and the confidence measures' in the order of `MEASURES`.
    """
    pixels = jax.nn.softmax(logits).reshape(logits.shape[0], -1, logits.shape[-1])

    # Image by image: the pixels of a whole batch at once would be many gigabytes.
    def means(image):
        here, said = image
        return here.mean(0), measures_of(here, said).mean(0)

    return jax.lax.map(means, (pixels, classes.swapaxes(0, 1)))


def confusion(
    predicted: Int[Array, "exits batch pixels"], labels: Int[Array, "batch pixels"], classes: int
) -> Int[Array, "exits batch classes classes"]:
    """How many pixels of each true class are given each class; those without a label count not."""
    exits, batch, _ = predicted.shape
    # One count for every (image, exit, true, predicted): unlabelled pixels go past the end.
    pairs = jnp.where(labels[None] >= 0, labels[None] * classes + predicted, classes**2)

    def count(pairs: Int[Array, " pixels"]) -> Int[Array, " cells"]:
        return jnp.bincount(pairs, length=classes**2 + 1)[:-1]

    counts = jax.vmap(jax.vmap(count))(pairs)
    return counts.reshape(exits, batch, classes, classes).astype(jnp.int32)
