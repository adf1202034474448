"""A tiny BERT with a tokenizer of letters, and a task that it learns: write the first letters of the source."""

import json
import random
from pathlib import Path

from seq2seq_jax.config import TrainConfig, from_mapping
from tests.weights.checkpoints import BERT as DEEPER
from tests.weights.checkpoints import make_pair, standalone

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
BERT = {**DEEPER, "num_hidden_layers": 1}  # quick to compile
assert len(VOCABULARY) == BERT["vocab_size"]


def checkpoint(directory: Path, extra_words: int = 0) -> Path:
    """A BERT directory as the hub lays it out; `extra_words` more than its embedding table has."""
    path = standalone(directory, make_pair(BERT, BERT), "encoder", BERT, prefix="bert.")
    words = [*VOCABULARY, *(f"x{i}" for i in range(extra_words))]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return path


def pairs(path: Path, count: int, *, seed: int = 0, longest: int = 12) -> Path:
    """A .jsonl file of `count` examples with sources of 1 to `longest` letters."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        letters = draw.choices(LETTERS, k=draw.randint(1, longest))
        rows.append({"document": " ".join(letters), "summary": " ".join(letters[:3])})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(directory: Path, **changes) -> dict:
    """A TrainConfig, as a mapping, of a run on files in `directory`; sections in `changes` are merged."""
    values = {
        "encoder": str(directory / "alone"),
        "decoder": str(directory / "alone"),
        "data": {
            "train": str(directory / "train.jsonl"),
            "validation": str(directory / "validation.jsonl"),
            "max_source_length": 14,
            "max_target_length": 5,
        },
        "batch": {"size": 8},
        "optimizer": {"learning_rate": 1e-3},
        "generation": {"max_length": 6},
        "num_steps": 6,
        "log_every": 1,
        "dropout": 0.1,
    }
    for name, value in changes.items():
        merged = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if merged else value
    return values


def config(directory: Path, **changes) -> TrainConfig:
    return from_mapping(TrainConfig, settings(directory, **changes))


def make(directory: Path) -> Path:
    """Checkpoint and data files."""
    checkpoint(directory)
    pairs(directory / "train.jsonl", 40)
    pairs(directory / "validation.jsonl", 6, seed=1)
    return directory


def records(workdir: Path, name: str = "train/loss") -> dict[int, float]:
    """Step and value of one scalar in metrics.jsonl."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row[name]) for row in rows if name in row]
    assert len(found) == len(dict(found)), "a step stands there twice"
    return dict(found)
