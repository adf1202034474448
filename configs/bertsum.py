"""Fine-tune a pair as BertSumAbs was (Liu & Lapata 2019): two schedules, one for each side.

python scripts/train.py --config=configs/bertsum.py --workdir=runs/bertsum \
    --config.encoder=google-bert/bert-base-uncased --config.decoder=google-bert/bert-base-uncased \
    --config.data.train=abisee/cnn_dailymail:train --config.data.subset=3.0.0 \
    --config.data.source_field=article --config.data.target_field=highlights

The pretrained encoder is trained later and less than the decoder, whose new parts must be learnt first: rates
lr * min(step^-0.5, step * warmup^-1.5) with 2e-3 and 20,000 steps, and 0.1 and 10,000 (the published commands: 0.2).
The paper's decoder is a new one of 6 layers; here it is what --config.decoder names. No run of this size has been made.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.check_no_variant("bertsum", arg)
    config = common.get_config()
    config.update(
        {
            "optimizer": {
                "schedule": "noam",
                "learning_rate": 0.1,
                "warmup_steps": 10000,
                "weight_decay": 0.0,
                "clip_norm": 0.0,
                "groups": (
                    {"match": r"encoder\.", "name": "encoder", "learning_rate": 2e-3, "warmup_steps": 20000},
                    {"match": ".*", "name": "decoder", "learning_rate": 0.1, "warmup_steps": 10000},
                ),
            },
            "batch": {"accumulation": 4},
            "label_smoothing": 0.1,
            "num_steps": 200000,
            "num_epochs": 0.0,
        }
    )
    config.generation.update({"num_beams": 5, "min_length": 50, "max_length": 200, "gnmt_length_penalty": 0.95})
    config.data.update({"max_target_length": 200})
    return config
