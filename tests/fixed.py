"""The committed torch results (scripts/make_torch_results.py), for tests without torch."""

from pathlib import Path

import numpy as np

from seq2seq_jax.pretrained.loading import from_pretrained

DIRECTORY = Path(__file__).parent / "torch_results"
NAMES = sorted(path.name for path in DIRECTORY.iterdir())


def load(name):
    """The pair, and torch's results on it."""
    with np.load(DIRECTORY / name / "results.npz") as file:
        return from_pretrained(DIRECTORY / name), dict(file)
