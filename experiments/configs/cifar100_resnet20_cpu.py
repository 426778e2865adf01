"""CIFAR-100, ResNet-20 with three exits, sized for a CPU.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024;
the network is He et al. 2016's ResNet-20, exits after blocks 3, 6 and 9.
Command:
    eenet data prepare cifar100 --data-dir data
    eenet train experiments/configs/cifar100_resnet20_cpu.py --data-dir data
Hardware: two CPU cores. Time: about an hour, as for CIFAR-10; not measured yet.
Expected: not known until it has been run.

It departs from the published recipe (150 epochs, steps down by 10) only where the time asks for
it: 10 epochs, Nesterov momentum, a warm-up of one epoch and a cosine to zero.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="cifar100_resnet20_cpu",
        data=DataConfig(dataset="cifar100", val_size=5000, batch_size=128),
        network=NetworkConfig(name="resnet20_3"),
        training=TrainingConfig(
            epochs=10,
            learning_rate=0.1,
            schedule="cosine",
            warmup_epochs=1.0,
            nesterov=True,
            distillation_weight=0.01 / 100,
            checkpoint_every=100,
        ),
        budgets=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
