"""Cityscapes, HRNetV2-W48 with four exits, under HRNet's published recipe.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024,
names HRNet and Cityscapes but gives no recipe for them. Network and recipe are those of Sun et al.
2019 (arXiv 1904.04514); exits after all four stages and self-distillation are this project's
reading of the EENet paper.
Command:
    eenet data prepare cityscapes --from CITYSCAPES --data-dir data
    eenet train cityscapes_hrnet --data-dir data
Hardware: accelerators with memory for batch 12 of 512 x 1024; the publishers used four GPUs. Time:
not measured; this project has not run it: the data are for registered users only.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 12, 484 epochs, SGD with momentum 0.9, learning rate 0.01 falling to zero by the power 0.9,
weight decay 5e-4, scale 0.5 to 2, crops of 512 x 1024, flip. Three things differ from what was
published: 500 of the 2,975 training images are held out for the scheduler, weights start at random
instead of ImageNet's, and the loss weighs all classes alike.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="cityscapes_hrnet",
        data=DataConfig(
            dataset="cityscapes",
            batch_size=12,
            eval_batch_size=4,
            crop_shape=(512, 1024),
            workers=8,
        ),
        network=NetworkConfig(name="hrnet_4"),
        training=TrainingConfig(
            epochs=484,
            learning_rate=0.01,
            schedule="poly",
            distillation_weight=0.01 / 19,
        ),
    )
