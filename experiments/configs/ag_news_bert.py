"""AG News, BERT-base with four exits: the paper's network and recipe.

Paper: Ilhan et al., "Adaptive Deep Neural Network Inference Optimization with EENet", WACV 2024.
The encoder is a local copy of bert-base-uncased: config.json, model.safetensors and tokenizer.json;
its publisher's licence is Apache-2.0.
Command:
    eenet data prepare ag_news --from ag_news_csv
    eenet train ag_news_bert
Hardware: one accelerator. Time: not measured yet; this project has not run it.
Expected: not known until it has been run; no figure of anybody else's is promised here.

Batch 16, 20 epochs, learning rate 3e-5, weight decay 1e-4, 10,000 training texts held out
for the scheduler.
The published code says SGD with momentum 0.9, which hardly moves at that rate: here it is AdamW
with a warm-up of one epoch and a line to zero.
"""

from eenet_jax.config import DataConfig, ExperimentConfig, NetworkConfig, TrainingConfig

ENCODER = "data/encoders/bert-base-uncased"


def get_config() -> ExperimentConfig:
    """The settings of this run."""
    return ExperimentConfig(
        name="ag_news_bert",
        data=DataConfig(
            dataset="ag_news", tokenizer=ENCODER, max_length=128, batch_size=16, eval_batch_size=64
        ),
        network=NetworkConfig(name="bert_4", overrides={"sequence_length": 53}, pretrained=ENCODER),
        training=TrainingConfig(
            epochs=20,
            optimizer="adamw",
            learning_rate=3e-5,
            schedule="linear",
            warmup_epochs=1.0,
            weight_decay=1e-4,
            clip_norm=1.0,
            distillation_weight=0.01 / 4,
            select="best",
        ),
    )
