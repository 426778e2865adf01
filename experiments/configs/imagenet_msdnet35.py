"""ImageNet, MSDNet of 35 layers with five exits: the paper's network and recipe.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024;
the network is Huang et al. 2018's MSDNet, exits after layers 7, 14, 21, 28 and 35.
Command:
    eenet data prepare imagenet2012 --from IMAGENET --data-dir data
    eenet train imagenet_msdnet35 --data-dir data
Hardware: accelerators, and processor cores to decode for them (docs/data/imagenet2012.md says how
many). Time: not measured; this project has not run it: the data are for registered users only.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 64, 200 epochs, SGD with momentum 0.9, learning rate 0.1 divided by 10 at epochs 75 and 150,
weight decay 1e-4, random resized crops and flips, 50,000 training images held out for the
scheduler; self-distillation from the last exit after 75 % of the epochs, its published α = 0.01
divided by the 1,000 classes. The published code divides the rate every 30 epochs, whatever its
settings say; these are the settings.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="imagenet_msdnet35",
        data=DataConfig(dataset="imagenet2012", batch_size=64, eval_batch_size=64, workers=16),
        network=NetworkConfig(name="msdnet35_5"),
        training=TrainingConfig(
            epochs=200,
            decay_epochs=(75, 150),
            weight_decay=1e-4,
            distillation_weight=0.01 / 1000,
        ),
    )
