"""CIFAR-10, ResNet-20 with three exits, sized for a CPU.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024;
the network is He et al. 2016's ResNet-20, exits after blocks 3, 6 and 9.
Command:
    eenet data prepare cifar10 --data-dir data
    eenet train experiments/configs/cifar10_resnet20_cpu.py --data-dir data
Hardware: two CPU cores. Time: about an hour (experiments/README.md has the measured one).
Expected: 84.6 % at the last exit on the test split (83 % at the second, 65 to 67 % at the first).

It departs from the published recipe (150 epochs, steps down by 10) only where the time asks for
it: 10 epochs, Nesterov momentum, a warm-up of one epoch and a cosine to zero.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="cifar10_resnet20_cpu",
        data=DataConfig(dataset="cifar10", val_size=5000, batch_size=128),
        network=NetworkConfig(name="resnet20_3"),
        training=TrainingConfig(
            epochs=10,
            learning_rate=0.1,
            schedule="cosine",
            warmup_epochs=1.0,
            nesterov=True,
            checkpoint_every=100,
        ),
        budgets=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
