"""Fine-tune any pair on any pairs of texts; the other configs begin here.

python scripts/train.py --config=configs/common.py --workdir=runs/mine --config.encoder=google-bert/bert-base-uncased \
    --config.decoder=google-bert/bert-base-uncased --config.data.train=pairs.jsonl

What to expect: three epochs at BERT's usual learning rate, decoding with four beams, and at the end the scores on the
validation examples (one in ten, at most 500, of the training file, unless data.validation is given).
`scripts/train.py --config.help` lists all fields.
"""

from ml_collections import ConfigDict

from seq2seq_jax.training.configs import train_config


def check_no_variant(recipe: str, arg: str | None) -> None:
    """Raises ValueError if `arg`, the text behind configs/<recipe>.py:, names a variant."""
    if arg:
        raise ValueError(f"configs/{recipe}.py has no variants, so {arg!r} is unknown; leave it out")


def get_config(arg: str | None = None) -> ConfigDict:
    check_no_variant("common", arg)
    return train_config(
        {
            "batch": {"size": 32, "buckets": 4},
            "optimizer": {"learning_rate": 5e-5, "warmup_steps": 100},
            "evaluation": {"every": 500, "decode_limit": 200, "metrics": ("rouge", "bleu")},
            "checkpoints": {"every": 500},
            "generation": {"num_beams": 4, "max_length": 64, "no_repeat_ngram_size": 3, "early_stopping": True},
            "num_epochs": 3.0,
        }
    )
