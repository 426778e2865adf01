"""Handwritten digits, a small CNN with three exits: the demonstration, a minute on a laptop.

Paper: the method is Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with
EENet", WACV 2024; the data set is scikit-learn's 8×8 digits (Alpaydin & Kaynak 1998), which the
paper doesn't use.
Command: `eenet train digits_cnn` (or `make demo` for everything after it as well).
Hardware: any CPU. Time: under a minute on two cores.
Expected: at least 97 % at the last exit on the test split.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="digits_cnn",
        data=DataConfig(dataset="digits", val_size=300, batch_size=64, augmentation="shift"),
        network=NetworkConfig(name="digits_cnn_3"),
        training=TrainingConfig(
            epochs=20,
            learning_rate=0.1,
            schedule="cosine",
            warmup_epochs=1.0,
            nesterov=True,
        ),
        budgets=(0.08, 0.15, 0.25, 0.4, 0.7),
    )
