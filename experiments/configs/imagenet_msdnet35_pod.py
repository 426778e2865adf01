"""ImageNet, MSDNet of 35 layers with five exits, in large batches on a TPU slice.

Paper: the network of Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with
EENet", WACV 2024; the recipe for large batches is Goyal et al. 2017, "Accurate, large minibatch
SGD": the rate grows in proportion to the batch, after a warm-up of five epochs.
Command:
    eenet compile imagenet_msdnet35_pod --topology v5e:4x4      # says what it takes, here and now
    CONFIG=imagenet_msdnet35_pod experiments/tpu/train.sh       # on a slice: docs/tpu.md
Hardware: a slice whose chips share 4,096 images evenly, such as v5e:4x4 or v5e:16x16. Time: not
measured.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 4,096, 200 epochs, SGD with Nesterov momentum 0.9, learning rate 0.1 per 256 images along a
cosine, weight decay 1e-4, label smoothing 0.1, a moving average of the weights, bfloat16
arithmetic; random resized crops and flips, 50,000 training images held out for the scheduler.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="imagenet_msdnet35_pod",
        data=DataConfig(dataset="imagenet2012", batch_size=4096, eval_batch_size=4096, workers=16),
        network=NetworkConfig(name="msdnet35_5"),
        training=TrainingConfig(
            epochs=200,
            schedule="cosine",
            learning_rate=0.1,
            reference_batch_size=256,
            warmup_epochs=5.0,
            nesterov=True,
            weight_decay=1e-4,
            label_smoothing=0.1,
            distillation_weight=0.01 / 1000,
            ema_decay=0.9999,
            compute_dtype="bfloat16",
            checkpoint_every=100,
        ),
    )
