"""Vocabularies made larger and smaller."""

import numpy as np
import pytest

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.resize import resize_token_embeddings
from seq2seq_jax.pretrained.saving import save_pretrained
from tests.weights.checkpoints import BERT, GPT2, equal, make_pair


@pytest.mark.parametrize("n", [40, 25])
def test_resized_vocabulary(n, tmp_path):
    pair = make_pair(BERT, GPT2)
    resized = resize_token_embeddings(pair, n, side="target")
    assert resized.config.decoder.vocab_size == n and resized.config.encoder.vocab_size == BERT["vocab_size"]
    ids = np.array([[3, 4, 5]])
    old, new = (p.model.apply({"params": p.params}, ids, decoder_input_ids=ids).logits for p in (pair, resized))
    assert new.shape[-1] == n
    same = min(n, 29)
    np.testing.assert_allclose(new[..., :same], old[..., :same], atol=1e-5)
    save_pretrained(tmp_path, resized)
    equal(from_pretrained(tmp_path).params, resized.params)
    with pytest.raises(ValueError, match="side 'decoder' is unknown; give 'source' or 'target'"):
        resize_token_embeddings(pair, n, side="decoder")


def test_resize_of_a_shared_table():
    pair = make_pair(BERT, BERT, tie_encoder_decoder="embeddings")
    resized = resize_token_embeddings(pair, 35, side="source")
    assert resized.config.encoder.vocab_size == resized.config.decoder.vocab_size == 35
    ids = np.array([[3, 4, 34]])
    assert np.isfinite(resized.model.apply({"params": resized.params}, ids, labels=ids).loss)
