"""A part of ImageNet, a small MSDNet with three exits, sized for a CPU: to try the path.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024;
the network is Huang et al. 2018's MSDNet, exits after layers 4, 6 and 8.
Command:
    eenet data prepare imagenet2012 --from PART_OF_IMAGENET --data-dir data
    eenet train imagenet_msdnet_cpu --data-dir data
Hardware: two CPU cores. Time: not measured; it depends on how large the part is.
Expected: nothing to be quoted: crops of 96 pixels and few epochs show that everything runs.

The part is a tree like the whole, with fewer images or fewer classes; more than `data.val_size`
training images. It departs from the published recipe in size alone: crops of 96 pixels, 5 epochs
with a cosine to zero after a warm-up of half an epoch, no self-distillation.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="imagenet_msdnet_cpu",
        data=DataConfig(
            dataset="imagenet2012",
            val_size=1000,
            batch_size=64,
            eval_batch_size=64,
            crop_shape=(96, 96),
            workers=1,
        ),
        network=NetworkConfig(
            name="msdnet",
            overrides={
                "base": 4,
                "step": 2,
                "num_exits": 3,
                "num_scales": 3,
                "channels": 16,
                "growth_rate": 8,
                "growth_factor": [1, 2, 4],
                "bottleneck_factor": [1, 2, 4],
            },
        ),
        training=TrainingConfig(
            epochs=5,
            schedule="cosine",
            warmup_epochs=0.5,
            weight_decay=1e-4,
            distillation_weight=0.0,
        ),
    )
