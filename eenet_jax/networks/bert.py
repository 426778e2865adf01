"""BERT (Devlin et al. 2019) with early exits: a pooler and a linear classifier at each."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped, UInt32

from eenet_jax.errors import InputError
from eenet_jax.networks import whole_batch
from eenet_jax.networks.contract import MultiExitNetwork

TOKEN_TYPES = 2
POOLINGS = ("first", "mean")

Carry = Mapping[str, Shaped[Array, "batch length ..."]]


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.normal(0.02), name=name)


def _embed(count: int, width: int, name: str) -> nn.Embed:
    return nn.Embed(count, width, embedding_init=nn.initializers.normal(0.02), name=name)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-12, use_fast_variance=False, name=name)


class Dropout(nn.Module):
    """Dropout that cuts four decisions from every 32 random bits, which are slow to draw.

    The rate is rounded to a multiple of 1/256, and what is kept is scaled by the rounded one. Every
    sample has a key of its own, so that it loses the same on whatever device it lies; JAX's "rbg"
    generators don't keep that promise, for a batch of keys draws by its first one there.

    Attributes:
      rate: Share of elements set to 0 in training; at 0 nothing is drawn.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *inner last"], train: bool
    ) -> Float[Array, "batch *inner last"]:
        """Drop, where `train`."""
        dropped = min(round(self.rate * 256), 255)
        if not train or dropped == 0:
            return x
        keep = _random_bytes(self.make_rng("dropout"), x.shape) >= dropped
        return jnp.where(keep, x * (256 / (256 - dropped)), 0.0)


def _random_bytes(key: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    samples, *inner, last = shape
    numbers = whole_batch.first_sample(samples) + jnp.arange(samples)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    # Asked for 8 bits at a time, JAX would draw 32 for each and discard the rest.
    width = (*inner, -(-last // 4))
    words = jax.vmap(lambda key: jax.random.bits(key, width, jnp.uint32))(keys)
    # Along the last axis, which no device has a part of: none sends another its bits.
    drawn = jnp.concatenate([(words >> shift) & 255 for shift in (0, 8, 16, 24)], axis=-1)
    return drawn[..., :last]


class Embeddings(nn.Module):
    """The sum of word, position and token-type embeddings, normalised.

    Attributes:
      width: Of a hidden state.
      vocab_size: Words.
      max_positions: Tokens of the longest text.
      dropout: Rate, in training.
    """

    width: int
    vocab_size: int
    max_positions: int
    dropout: float

    @nn.compact
    def __call__(self, x: Mapping[str, Shaped[Array, "batch length"]], train: bool) -> Carry:
        """Embed token ids.

        Args:
          x: `input_ids`, `attention_mask` (0 = padding) and, if given, `token_type_ids`.
          train: Whether to drop.

        Returns:
          The hidden states and the mask.

        Raises:
          InputError: the text is too long, or has no mask.
        """
        mask = _mask(x, self.max_positions)
        # Whatever ids stand in the padding, they must be ids of the vocabulary: an unknown one
        # gives NaN, which even a weight of zero hands on.
        words = _embed(self.vocab_size, self.width, "word_embeddings")(
            jnp.where(mask, x["input_ids"], 0)
        )
        types = jnp.where(mask, x.get("token_type_ids", jnp.zeros_like(x["input_ids"])), 0)
        kinds = _embed(TOKEN_TYPES, self.width, "token_type_embeddings")(types)
        places = _embed(self.max_positions, self.width, "position_embeddings")(
            jnp.arange(mask.shape[1])
        )
        hidden = _layer_norm("LayerNorm")(words + kinds + places[None])
        return {"hidden": Dropout(self.dropout)(hidden, train), "mask": mask}


def _mask(
    x: Mapping[str, Shaped[Array, "batch length"]], max_positions: int
) -> Bool[Array, "batch length"]:
    if missing := {"input_ids", "attention_mask"} - x.keys():
        raise InputError(f"the text has no {' and no '.join(sorted(missing))}: give both")
    length = x["input_ids"].shape[1]
    if length > max_positions:
        raise InputError(
            f"a text of {length} tokens is longer than max_positions {max_positions}: cut it"
        )
    return x["attention_mask"] != 0


class Attention(nn.Module):
    """Multi-head self-attention over the tokens that are no padding.

    Attributes:
      heads: Attention heads; they share the width equally.
      dropout: Rate of the attention probabilities, in training.
    """

    heads: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Attend (Vaswani et al. 2017, equation 1, for each head)."""
        split = (*hidden.shape[:2], self.heads, hidden.shape[-1] // self.heads)
        query, key, value = (
            _dense(hidden.shape[-1], name)(hidden).reshape(split)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query / math.sqrt(split[-1]), key)
        # Finite, so that a row of nothing but padding gives numbers; e to this power is 0.
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
        weights = Dropout(self.dropout)(nn.softmax(scores), train)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(hidden.shape)


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual and LayerNorm after it.

    Attributes:
      heads: Attention heads.
      mlp_width: Hidden units of the perceptron.
      dropout: Rate, in training.
    """

    heads: int
    mlp_width: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """Apply the layer."""
        width = hidden.shape[-1]
        attended = Attention(self.heads, self.dropout, name="attention")(hidden, mask, train)
        attended = Dropout(self.dropout)(_dense(width, "attention_dense")(attended), train)
        hidden = _layer_norm("attention_norm")(hidden + attended)
        inner = nn.gelu(_dense(self.mlp_width, "intermediate_dense")(hidden), approximate=False)
        outer = Dropout(self.dropout)(_dense(width, "output_dense")(inner), train)
        return _layer_norm("output_norm")(hidden + outer)


class Stage(nn.Module):
    """Consecutive layers, the embeddings before the first.

    Attributes:
      layers: Indices of the layers, from 0.
      heads: Attention heads.
      mlp_width: Hidden units of each layer's perceptron.
      dropout: Rate, in training.
      embeddings: What comes first, in the first stage.
    """

    layers: tuple[int, ...]
    heads: int
    mlp_width: int
    dropout: float
    embeddings: Embeddings | None

    @nn.compact
    def __call__(self, carry: Carry, train: bool) -> Carry:
        """Apply the stage."""
        if self.embeddings is not None:
            carry = self.embeddings(carry, train)
        hidden, mask = carry["hidden"], carry["mask"]
        for i in self.layers:
            layer = Layer(self.heads, self.mlp_width, self.dropout, name=f"layer{i}")
            hidden = layer(hidden, mask, train)
        return {"hidden": hidden, "mask": mask}


class Head(nn.Module):
    """BERT's pooler (one token or their mean, dense, tanh) and a linear classifier.

    Attributes:
      num_classes: C.
      pooling: "first" token, or the "mean" of those that are no padding.
      dropout: Rate of what is pooled, in training.
    """

    num_classes: int
    pooling: Literal["first", "mean"]
    dropout: float

    @nn.compact
    def __call__(self, carry: Carry, train: bool) -> Float[Array, "batch classes"]:
        """Classify texts."""
        pooled = self._pool(carry["hidden"], carry["mask"])
        pooled = jnp.tanh(_dense(pooled.shape[-1], "pooler")(pooled))
        return _dense(self.num_classes, "classifier")(Dropout(self.dropout)(pooled, train))

    def _pool(
        self, hidden: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        if self.pooling == "first":
            return hidden[:, 0]
        total = jnp.where(mask[..., None], hidden, 0.0).sum(1)
        return total / jnp.maximum(mask.sum(1, keepdims=True), 1)


def build_bert(
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    mlp_width: int = 3072,
    vocab_size: int = 30522,
    max_positions: int = 512,
    exit_after: Sequence[int] = (3, 6, 9),
    num_classes: int = 4,
    pooling: Literal["first", "mean"] = "first",
    dropout: float = 0.1,
    sequence_length: int | None = None,
) -> MultiExitNetwork:
    """BERT with an exit after each layer counted in `exit_after`, and one after the last.

    Its input is `{"input_ids": …, "attention_mask": …}`, each [batch, length], with
    `token_type_ids` beside them where a text has two parts.

    Args:
      layers: Transformer layers.
      width: Of a hidden state.
      heads: Attention heads of a layer; they share the width equally.
      mlp_width: Hidden units of a layer's perceptron.
      vocab_size: Words of the vocabulary.
      max_positions: Tokens of the longest text.
      exit_after: Layers after which an early exit sits.
      num_classes: C.
      pooling: What the exits see: the "first" token, or the "mean" over the text's tokens.
      dropout: Rate in training, of embeddings, attention and outputs.
      sequence_length: Tokens of the example input, which costs are counted at; None for 128, or
        `max_positions` where that is less.

    Returns:
      The network, with `len(exit_after) + 1` exits.

    Raises:
      InputError: sizes that don't fit together, an unknown pooling, or exits that don't lie
        inside the network in order.
    """
    _check_exits(exit_after, layers)
    sequence_length = min(128, max_positions) if sequence_length is None else sequence_length
    _check_sizes(width, heads, sequence_length, max_positions)
    _check_choices(pooling, dropout)
    embeddings = Embeddings(width, vocab_size, max_positions, dropout)
    stages = tuple(
        Stage(
            layers=tuple(range(start, stop)),
            heads=heads,
            mlp_width=mlp_width,
            dropout=dropout,
            embeddings=embeddings if start == 0 else None,
        )
        for start, stop in itertools.pairwise([0, *exit_after, layers])
    )
    settings = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "exit_after": list(exit_after),
        "num_classes": num_classes,
        "pooling": pooling,
        "dropout": dropout,
        "sequence_length": sequence_length,
    }
    return MultiExitNetwork(
        family="bert",
        settings=settings,
        stages=stages,
        heads=tuple(Head(num_classes, pooling, dropout) for _ in stages),
        input_shape=(sequence_length,),
        inputs="tokens",
    )


def _check_exits(exit_after: Sequence[int], layers: int) -> None:
    inside = all(0 < after < layers for after in exit_after)
    if not exit_after or not inside or list(exit_after) != sorted(set(exit_after)):
        raise InputError(
            f"exit_after {list(exit_after)} must increase strictly within 1..{layers - 1},"
            f" for {layers} layers have a last exit of their own"
        )


def _check_sizes(width: int, heads: int, sequence_length: int, max_positions: int) -> None:
    if width % heads:
        raise InputError(f"width {width} cannot be shared by {heads} heads: give a multiple")
    if sequence_length > max_positions:
        raise InputError(
            f"sequence_length {sequence_length} is beyond max_positions {max_positions}: lower it"
        )


def _check_choices(pooling: str, dropout: float) -> None:
    if pooling not in POOLINGS:
        raise InputError(f"pooling '{pooling}' is unknown: choose one of {', '.join(POOLINGS)}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout!r}: give a rate from 0 up to, but not, 1")


PUBLISHED = {
    "attention_dense": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate_dense": "intermediate.dense",
    "output_dense": "output.dense",
    "output_norm": "output.LayerNorm",
}


def published_name(settings: dict, path: tuple[str, ...]) -> str:
    """The published PyTorch name of the module at `path`, e.g. ("head_1", "pooler").

    Hugging Face's BertModel under `bert.`; exit k's pooler is `bert.poolers.k`, its classifier
    `classifiers.k`.
    """
    place, *rest = path
    if place.startswith("head_"):
        k = place.removeprefix("head_")
        return f"bert.poolers.{k}.dense" if rest == ["pooler"] else f"classifiers.{k}"
    if rest[0] == "embeddings":
        return "bert." + ".".join(rest)
    module = f"attention.self.{rest[2]}" if rest[1] == "attention" else PUBLISHED[rest[1]]
    return f"bert.encoder.layer.{rest[0].removeprefix('layer')}.{module}"
