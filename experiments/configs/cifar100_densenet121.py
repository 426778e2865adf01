"""CIFAR-100, DenseNet-121 with four exits: the paper's network and recipe.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024.
Command:
    eenet data prepare cifar100 --data-dir data
    eenet train cifar100_densenet121 --data-dir data
Hardware: one accelerator. Time: not measured yet; this project has not run it.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 128, 150 epochs, SGD with momentum 0.9, learning rate 0.1 divided by 10 at epochs 50 and 100,
weight decay 5e-4, pad-4 random crop and flip, 5,000 training images held out for the scheduler;
self-distillation from the last exit after 75 % of the epochs, its published α = 0.01 divided by
the 100 classes.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="cifar100_densenet121",
        data=DataConfig(dataset="cifar100"),
        network=NetworkConfig(name="densenet121_4"),
        training=TrainingConfig(distillation_weight=0.01 / 100),
    )
