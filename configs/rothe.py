"""Fine-tune a pair as Rothe et al. 2020 did: Adam, one schedule for all.

python scripts/train.py --config=configs/rothe.py --workdir=runs/rothe --config.encoder=google-bert/bert-base-uncased \
    --config.decoder=google-bert/bert-base-uncased --config.data.train=EdinburghNLP/xsum:train

The rate is 0.05 / sqrt(hidden size) * min(step^-0.5, step * warmup^-1.5) with a warm-up of 40,000 steps, so 9e-6 at
its highest for base models; for large ones give --config.optimizer.learning_rate=0.0015625 (0.05 / sqrt(1024)). They
trained 200,000 to 500,000 steps, by task, with batches of 128 or 256. No run of this size has been made.
"""

import math

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    common.check_no_variant("rothe", arg)
    config = common.get_config()
    config.update(
        {
            "optimizer": {
                "schedule": "noam",
                "learning_rate": 0.05 / math.sqrt(768),
                "warmup_steps": 40000,
                "weight_decay": 0.0,
                "clip_norm": 0.0,
            },
            "batch": {"size": 128},
            "num_steps": 200000,
            "num_epochs": 0.0,
        }
    )
    config.generation.update({"num_beams": 4, "length_penalty": 0.6})
    return config
