"""Cityscapes, the small HRNet of `camvid_hrnet_cpu`: for trying the path on a CPU.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024,
names HRNet and Cityscapes; the network is Sun et al. 2019's, much narrower.
Command:
    eenet data prepare cityscapes --from CITYSCAPES --data-dir data
    eenet train cityscapes_hrnet_cpu --data-dir data
Hardware: CPU cores. Time: not measured; this project has not run it: the data are for registered
users only.
Expected: not known until it has been run.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="cityscapes_hrnet_cpu",
        data=DataConfig(
            dataset="cityscapes",
            batch_size=4,
            eval_batch_size=1,
            crop_shape=(256, 512),
            workers=1,
        ),
        network=NetworkConfig(name="hrnet_4_cpu"),
        training=TrainingConfig(
            epochs=10,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.01,
            schedule="cosine",
            warmup_epochs=1.0,
            distillation_weight=0.0,
            checkpoint_every=100,
        ),
    )
