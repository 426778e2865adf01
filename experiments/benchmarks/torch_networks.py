"""PyTorch twins of networks here, with the same weights, for timing both beside one another.

Modules bear the names that our variables have, so that weights are copied by path: kernels are
transposed, statistics and embeddings renamed, nothing is fused or folded. A twin is what one would
write in plain PyTorch: NCHW images (channels-last in memory unless told otherwise), `Conv2d`,
`BatchNorm2d`, scaled dot-product attention. Callers use `torch.inference_mode`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from eenet_jax.errors import InputError
from eenet_jax.networks import MultiExitNetwork, bert, heads, resnet
from eenet_jax.networks.convert import LEAVES, WRAPPERS

TOLERANCE = 1e-4
DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"
"""Where twins run: where our networks do."""
# As XLA does unless told otherwise, so that both multiply with the same precision.
torch.backends.cuda.matmul.allow_tf32 = True

Carry = Any
"""What a stage hands on: a feature map, or hidden states with their mask."""


class TorchNetwork(nn.Module):
    """K stages and K exit heads in evaluation mode.

    Args:
      stages: K modules, each called with what the one before handed on.
      heads: K modules that turn a stage's result into logits [batch, classes].
    """

    def __init__(self, stages: list[nn.Module], heads: list[nn.Module]):
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    def stage(self, k: int, carry: Carry) -> Carry:
        """Stage k (0-based); stage 0 takes the input."""
        return self.stages[k](carry)

    def head(self, k: int, carry: Carry) -> torch.Tensor:
        """Logits [batch, classes] of exit k (0-based) from the carry after stage k."""
        return self.heads[k](carry)

    def full(self, x: Carry) -> list[torch.Tensor]:
        """Logits of every exit."""
        logits = []
        for k in range(self.num_exits):
            x = self.stage(k, x)
            logits.append(self.head(k, x))
        return logits


def torch_network(
    network: MultiExitNetwork, variables: Mapping[str, Any], *, channels_last: bool = True
) -> TorchNetwork:
    """The twin of a network.

    Args:
      network: Of the family "resnet" or "bert".
      variables: Its weights, which are copied.
      channels_last: Whether images and kernels lie channels-last in memory.

    Raises:
      InputError: the family has no twin.
    """
    if network.family == "resnet":
        twin = _resnet(network)
    elif network.family == "bert":
        twin = _bert(network)
    else:
        raise InputError(f"'{network.family}' has no PyTorch twin: choose resnet or bert")
    twin.load_state_dict(_state_dict(variables) | _counters(twin))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return twin.eval().requires_grad_(False).to(DEVICE, memory_format=layout)


def wait() -> None:
    """Until the device has done what it was asked to."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def torch_input(x: Any, *, channels_last: bool = True) -> Carry:
    """An input of ours as a twin takes it.

    Args:
      x: Images [batch, height, width, channels], or a dict of tokens [batch, length].
      channels_last: As for the twin.

    Returns:
      Images [batch, channels, height, width], or a dict of tokens; a copy.
    """
    if isinstance(x, Mapping):
        ids = {name: torch.tensor(np.asarray(each), dtype=torch.long) for name, each in x.items()}
        return {name: each.to(DEVICE) for name, each in ids.items()}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=layout).to(DEVICE)


def compacted(
    network: TorchNetwork,
    decide: Callable[[int, torch.Tensor], torch.Tensor],
    x: Carry,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adaptive inference on survivors alone, which are gathered after each exit.

    Args:
      network: The twin.
      decide: (k, softmax outputs of exits 0..k [k + 1, survivors, classes]) → who leaves
        [survivors], bool. It is not asked at the last exit, where everybody leaves.
      x: A batch.

    Returns:
      Logits [batch, classes] of the exits that samples left at, and those exits [batch], 0-based,
      in the batch's order.
    """
    carry = network.stage(0, x)
    logits = network.head(0, carry)
    probs = logits.softmax(-1)[None]
    # A sample that goes on is overwritten by the exit that it leaves at.
    answers, exits = logits.clone(), logits.new_zeros(len(logits), dtype=torch.long)
    rows = torch.arange(len(logits), device=logits.device)
    for k in range(1, network.num_exits):
        stay = ~decide(k - 1, probs)
        rows = rows[stay]
        if len(rows) == 0:
            break
        if len(rows) < len(stay):
            carry, probs = _rows(carry, stay), probs[:, stay]
        carry = network.stage(k, carry)
        logits = network.head(k, carry)
        probs = torch.cat([probs, logits.softmax(-1)[None]])
        answers[rows], exits[rows] = logits, k
    return answers, exits


def _rows(carry: Carry, chosen: torch.Tensor) -> Carry:
    if isinstance(carry, Mapping):
        return {name: each[chosen] for name, each in carry.items()}
    return carry[chosen]


def largest_difference(
    network: MultiExitNetwork, variables: Mapping[str, Any], twin: TorchNetwork, x: Any
) -> float:
    """How far a twin's logits are off: the largest difference over the largest of our logits.

    Args:
      network: Ours.
      variables: Its weights.
      twin: Made of both.
      x: A batch as our network takes it.

    Raises:
      RuntimeError: it is not below `TOLERANCE`, so that the two must not be compared.
    """
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(network.apply)(variables, x))
    with torch.inference_mode(), highest_precision():
        theirs = torch.stack(twin.full(torch_input(x))).numpy(force=True)
    difference = float(np.abs(theirs - ours).max() / np.abs(ours).max())
    if not difference < TOLERANCE:
        raise RuntimeError(f"the twin of {network.family} is off by {difference:.2g}")
    return difference


@contextlib.contextmanager
def highest_precision() -> Iterator[None]:
    """Products of float32 as such, also on GPUs that have something faster."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def _state_dict(variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Our variables by the names of a twin's modules: `stage_0/conv1/conv` is `stages.0.conv1`."""
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(variables):
        _collection, place, *modules, kind = (entry.key for entry in path)
        kept = [name for name in modules if name not in WRAPPERS]
        value = np.asarray(leaf, np.float32)
        if kind == "kernel":
            value = np.moveaxis(value, (-1, -2), (0, 1))
        where, k = place.split("_")
        tensors[".".join([f"{where}s", k, *kept, LEAVES[kind]])] = torch.tensor(value.copy())
    return tensors


def _counters(twin: TorchNetwork) -> dict[str, torch.Tensor]:
    """BatchNorm's counters of training steps, which evaluation does not read."""
    return {name: t for name, t in twin.state_dict().items() if name.endswith("batches_tracked")}


def _conv(inputs: int, features: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """A residual block, basic or bottleneck.

    Args:
      inputs: Channels.
      kind: "basic" or "bottleneck".
      width: Channels inside.
      stride: In pixels.
    """

    def __init__(self, inputs: int, kind: str, width: int, stride: int):
        super().__init__()
        features = width * resnet.EXPANSION[kind]
        self.bottleneck = kind == "bottleneck"
        if self.bottleneck:
            self.conv1, self.conv2 = _conv(inputs, width, 1), _conv(width, width, 3, stride)
            self.conv3, self.bn3 = _conv(width, features, 1), nn.BatchNorm2d(features)
        else:
            self.conv1, self.conv2 = _conv(inputs, width, 3, stride), _conv(width, features)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width if self.bottleneck else features)
        self.projected = stride != 1 or inputs != features
        if self.projected:
            self.shortcut_conv = _conv(inputs, features, 1, stride)
            self.shortcut_bn = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(functional.relu(y, inplace=True)))
        y += self.shortcut_bn(self.shortcut_conv(x)) if self.projected else x
        return functional.relu(y, inplace=True)


class ResNetStage(nn.Sequential):
    """Consecutive blocks, the stem before the first.

    Args:
      inputs: Channels.
      stage: Ours.
    """

    def __init__(self, inputs: int, stage: resnet.Stage):
        super().__init__()
        if stage.stem:
            self.add_module("conv1", _conv(inputs, stage.base_width))
            self.add_module("bn1", nn.BatchNorm2d(stage.base_width))
            self.add_module("relu", nn.ReLU(inplace=True))
            inputs = stage.base_width
        for group, index in stage.blocks:
            width, stride = stage.base_width * 2**group, 2 if group > 0 and index == 0 else 1
            block = Block(inputs, stage.kind, width, stride)
            self.add_module(f"group{group}_block{index}", block)
            inputs = width * resnet.EXPANSION[stage.kind]
        self.features = inputs


class PooledLinear(nn.Linear):
    """Global average pool and a linear classifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mean((2, 3)))


class ConvHead(nn.Sequential):
    """3×3 convolution, BatchNorm and ReLU several times, then `PooledLinear`.

    Args:
      inputs: Channels.
      head: Ours.
    """

    def __init__(self, inputs: int, head: heads.ConvHead):
        super().__init__()
        channels = inputs // head.reduction
        for i in range(head.num_convs):
            self.add_module(f"conv{i}", _conv(channels if i else inputs, channels))
            self.add_module(f"norm{i}", nn.BatchNorm2d(channels))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
        self.add_module("classifier", PooledLinear(channels, head.num_classes))


def _resnet(network: MultiExitNetwork) -> TorchNetwork:
    stages, exits, channels = [], [], network.input_shape[-1]
    for stage, head in zip(network.stages, network.heads, strict=True):
        stages.append(ResNetStage(channels, stage))
        channels = stages[-1].features
        early = isinstance(head, heads.ConvHead)
        exits.append(
            ConvHead(channels, head) if early else PooledLinear(channels, head.num_classes)
        )
    return TorchNetwork(stages, exits)


class Embeddings(nn.Module):
    """The sum of word, position and token-type embeddings, normalised.

    Args:
      settings: Ours.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        width = settings["width"]
        self.word_embeddings = nn.Embedding(settings["vocab_size"], width)
        self.token_type_embeddings = nn.Embedding(bert.TOKEN_TYPES, width)
        self.position_embeddings = nn.Embedding(settings["max_positions"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Mapping[str, torch.Tensor]) -> Carry:
        mask = x["attention_mask"] != 0
        # As ours, so that padding may hold any ids.
        words = self.word_embeddings(x["input_ids"] * mask)
        if "token_type_ids" in x:
            kinds = self.token_type_embeddings(x["token_type_ids"] * mask)
        else:
            kinds = self.token_type_embeddings.weight[0]
        places = self.position_embeddings.weight[: mask.shape[1]]
        return {"hidden": self.LayerNorm(words + kinds + places), "mask": mask}


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
      width: Of a hidden state.
      count: Heads.
    """

    def __init__(self, width: int, count: int):
        super().__init__()
        self.count = count
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        split = (*hidden.shape[:2], self.count, -1)
        query, key, value = (
            linear(hidden).view(split).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attended.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual and LayerNorm after it.

    Args:
      stage: Ours, which it belongs to.
      width: Of a hidden state.
    """

    def __init__(self, stage: bert.Stage, width: int):
        super().__init__()
        self.attention = Attention(width, stage.heads)
        self.attention_dense = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.intermediate_dense = nn.Linear(width, stage.mlp_width)
        self.output_dense = nn.Linear(stage.mlp_width, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        attended = self.attention_dense(self.attention(hidden, bias))
        hidden = self.attention_norm(hidden + attended)
        inner = functional.gelu(self.intermediate_dense(hidden))
        return self.output_norm(hidden + self.output_dense(inner))


class BertStage(nn.Module):
    """Consecutive layers, the embeddings before the first.

    Args:
      stage: Ours.
      settings: The network's.
    """

    def __init__(self, stage: bert.Stage, settings: Mapping[str, Any]):
        super().__init__()
        self.first = stage.embeddings is not None
        if self.first:
            self.embeddings = Embeddings(settings)
        self.layers = [f"layer{i}" for i in stage.layers]
        for name in self.layers:
            self.add_module(name, Layer(stage, settings["width"]))

    def forward(self, carry: Carry) -> Carry:
        if self.first:
            carry = self.embeddings(carry)
        hidden, mask = carry["hidden"], carry["mask"]
        # Finite as ours, so that a row of nothing but padding gives numbers.
        lowest = torch.finfo(hidden.dtype).min
        bias = hidden.new_zeros(mask.shape).masked_fill_(~mask, lowest)[:, None, None]
        for name in self.layers:
            hidden = getattr(self, name)(hidden, bias)
        return {"hidden": hidden, "mask": mask}


class BertHead(nn.Module):
    """BERT's pooler and a linear classifier.

    Args:
      head: Ours.
      width: Of a hidden state.
    """

    def __init__(self, head: bert.Head, width: int):
        super().__init__()
        self.first = head.pooling == "first"
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, head.num_classes)

    def forward(self, carry: Carry) -> torch.Tensor:
        hidden, mask = carry["hidden"], carry["mask"]
        if self.first:
            pooled = hidden[:, 0]
        else:
            total = (hidden * mask[..., None]).sum(1)
            pooled = total / mask.sum(1, keepdim=True).clamp(min=1)
        return self.classifier(self.pooler(pooled).tanh())


def _bert(network: MultiExitNetwork) -> TorchNetwork:
    settings = network.settings
    return TorchNetwork(
        [BertStage(stage, settings) for stage in network.stages],
        [BertHead(head, settings["width"]) for head in network.heads],
    )
