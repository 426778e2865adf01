"""The training step of a network in PyTorch, with this package's loss and optimizer."""

import contextlib
from collections.abc import Mapping

import numpy as np
import torch
import torch_networks

from eenet_jax.config import ExperimentConfig
from eenet_jax.data import datasets
from eenet_jax.networks import MultiExitNetwork
from eenet_jax.training import losses
from eenet_jax.types import PyTree


class TorchStep:
    """One step: normalise, all exits, the joint loss, its gradients, SGD.

    Args:
      network: The network.
      variables: Its weights at the start.
      config: The learning rate, momentum and weight decay.
      channels_last: The memory layout of images and weights.
    """

    def __init__(
        self, network: MultiExitNetwork, variables: PyTree, config: ExperimentConfig,
        *, channels_last: bool,
    ):  # fmt: skip
        self.twin = torch_networks.torch_network(network, variables, channels_last=channels_last)
        self.twin.train().requires_grad_(True)
        training, self.channels_last = config.training, channels_last
        self.optimizer = torch.optim.SGD(
            self.twin.parameters(),
            training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        self.weights = np.asarray(losses.exit_weights("linear", network.num_exits)).tolist()
        spec = datasets.get("cifar10")
        self.mean, self.std = (
            torch.tensor(each, device=torch_networks.DEVICE)[None, :, None, None]
            for each in (spec.mean, spec.std)
        )

    def train(self, batch: Mapping[str, np.ndarray]) -> float:
        """One step; its loss."""
        images = torch_networks.torch_input(batch["image"], channels_last=self.channels_last)
        labels = torch.tensor(batch["label"], dtype=torch.long, device=torch_networks.DEVICE)
        x = (images.float() / 255 - self.mean) / self.std
        entropy = torch.nn.functional.cross_entropy
        logits = self.twin.full(x)
        loss = sum(w * entropy(each, labels) for w, each in zip(self.weights, logits, strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def precisely(self) -> contextlib.AbstractContextManager:
        """In which products are not rounded."""
        return torch_networks.highest_precision()

    def peak_bytes(self) -> int:
        """Of the GPU's memory, so far."""
        return torch.cuda.max_memory_allocated()
