"""Dense prediction, image by image: what exits say of an image's pixels, in one row an image.

The paper names Cityscapes and HRNet but leaves open what leaves early. Here an image does, as a
whole: its softmax is the mean over its pixels, its confidence the mean of the pixels' measures,
and it is as right as the share of its labelled pixels that are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from eenet_jax.confidence import confidence_measures
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
    exits, batch, height, width, classes = logits.shape
    pixels = jax.nn.softmax(logits).reshape(exits, batch, height * width, classes)
    flat = labels.reshape(batch, height * width)
    counts = confusion(logits.argmax(-1).reshape(exits, batch, -1), flat, classes)
    labelled = jnp.maximum(counts.sum((2, 3)), 1)
    return {
        "probs": pixels.mean(2),
        "measures": jax.lax.map(mean_measures, pixels.swapaxes(0, 1)).swapaxes(0, 1),
        "correct": jnp.trace(counts, axis1=2, axis2=3) / labelled,
        "confusion": counts,
    }


def mean_measures(
    probs: Float[Array, "exits pixels classes"],
) -> Float[Array, "exits 5"]:
    """The mean over an image's pixels of every measure at every exit."""
    return confidence_measures(probs).mean(1)


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
