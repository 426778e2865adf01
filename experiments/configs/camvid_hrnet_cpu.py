"""CamVid, a small HRNet with four exits, sized for a CPU.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024,
names HRNet on Cityscapes, which is for registered users only: CamVid stands in for it. The network
is that of Sun et al. 2019 (arXiv 1904.04514) with a third of its width and one module a stage.
Command:
    eenet data prepare camvid --from CAMVID --data-dir data
    eenet train camvid_hrnet_cpu --data-dir data
Hardware: two CPU cores. Time: 55 minutes on cores shared with other work.
Expected: on the test split, pixel accuracy 63.9, 76.7, 81.7 and 82.8 % and mIoU 0.22, 0.33, 0.39
and 0.43 at the four exits; another run on another processor gave 64.1, 76.8, 82.6 and 84.3 %.

It departs from `camvid_hrnet` where the time asks for it: 24 epochs of crops of 240 x 320, AdamW
with a warm-up of one epoch and a cosine to zero. The publisher's validation split, never trained
on, is what the scheduler is fitted to.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="camvid_hrnet_cpu",
        data=DataConfig(dataset="camvid", batch_size=4, eval_batch_size=4, crop_shape=(240, 320)),
        network=NetworkConfig(name="hrnet_4_cpu"),
        training=TrainingConfig(
            epochs=24,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.01,
            schedule="cosine",
            warmup_epochs=1.0,
            distillation_weight=0.0,
            checkpoint_every=500,
        ),
    )
