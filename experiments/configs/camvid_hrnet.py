"""CamVid, HRNetV2-W48 with four exits: the Cityscapes recipe, scaled to CamVid.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024,
names HRNet on Cityscapes and gives no recipe for it; network and recipe are those of Sun et al.
2019 (arXiv 1904.04514), as in `cityscapes_hrnet`. CamVid is a stand-in that can be had.
Command:
    eenet data prepare camvid --from CAMVID --data-dir data
    eenet train camvid_hrnet --data-dir data
Hardware: one accelerator. Time: not measured yet; this project has not run it.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 12, 484 epochs (here about 14,500 steps; on Cityscapes 120,000), SGD with momentum 0.9,
learning rate 0.01 falling to zero by the power 0.9, weight decay 5e-4, scale 0.5 to 2, crops of the
images' own size, flip. Weights start at random, where the published recipe starts from ImageNet's.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="camvid_hrnet",
        data=DataConfig(dataset="camvid", batch_size=12, eval_batch_size=12),
        network=NetworkConfig(name="hrnet_4"),
        training=TrainingConfig(
            epochs=484,
            learning_rate=0.01,
            schedule="poly",
            distillation_weight=0.01 / 11,
        ),
    )
