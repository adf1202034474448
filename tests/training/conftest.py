"""A small pair and a batch, for tests of one step."""

import numpy as np
import pytest

from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs
from tests.weights.checkpoints import BERT, TOKENS


@pytest.fixture(scope="module")
def pair():
    config = {**BERT, "num_hidden_layers": 2}
    return from_encoder_decoder_configs(config, config, **TOKENS)


@pytest.fixture(scope="module")
def batch():
    """4 sources of 5 tokens, and their first 4 as labels."""
    ids = np.random.default_rng(0).integers(3, BERT["vocab_size"], (4, 5))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids[:, :4]}
