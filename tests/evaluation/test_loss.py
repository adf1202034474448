"""The loss of a corpus: whole, and in chunks that hold few logits at a time."""

import math
import re

import jax
import numpy as np
import pytest

from seq2seq_jax.config import DataConfig, LossConfig
from seq2seq_jax.data.encoding import encode_pairs
from seq2seq_jax.data.sources import load_pairs
from seq2seq_jax.evaluation import loss
from seq2seq_jax.inference import evaluate as evaluation
from seq2seq_jax.models.losses import IGNORED
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.pretrained.pair import from_encoder_decoder_pretrained
from seq2seq_jax.text.tokenizer import Tokenizers, pad
from tests.training import toy
from tests.weights.checkpoints import TOKENS

CHUNK, ROWS = 3, 8


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A pair, its tokenizers and examples."""
    work = toy.make(tmp_path_factory.mktemp("loss"))
    pair = from_encoder_decoder_pretrained(work / "alone", work / "alone", **TOKENS)
    tokenizers = Tokenizers.load(work / "alone", work / "alone")
    pairs = load_pairs(str(work / "train.jsonl"), source_field="document", target_field="summary")
    settings = DataConfig(train="", max_source_length=14, max_target_length=5)
    return pair, tokenizers, encode_pairs(pairs, *tokenizers, settings, "train")


def most_logits(jaxpr):
    """Elements of the largest array whose last axis is the vocabulary."""
    shapes = [tuple(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", jaxpr)]
    return max(math.prod(shape) for shape in shapes if shape[-1] == toy.BERT["vocab_size"])


def test_in_chunks(work, monkeypatch):
    """evaluate passes the chunk on: the same loss, without the logits of all tokens."""
    pair, tokenizers, examples = work
    programs, sums = [], loss._sums

    def traced(*arguments):
        programs.append((arguments[-1]["labels"].size, str(sums.trace(*arguments).jaxpr)))
        return sums(*arguments)

    monkeypatch.setattr(loss, "_sums", traced)
    monkeypatch.setattr(evaluation, "decode_ids", lambda pair, ids, *rest, **more: [["a"]] * len(ids))
    found = []
    for chunk in (None, CHUNK):
        programs.clear()
        options = {"metrics": ["rouge"], "batch_size": ROWS, "loss_config": LossConfig(chunk=chunk)}
        found.append(evaluation.evaluate(pair, examples, tokenizers, make_mesh(data=-1), **options).scores["loss"])
        for tokens, jaxpr in programs:
            assert most_logits(jaxpr) == (chunk or tokens) * toy.BERT["vocab_size"]
        assert max(tokens for tokens, _ in programs) > 8 * CHUNK
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_mean_of_all_target_tokens(work):
    """Each token weighs alike, whatever batch it is in: the loss of one batch of all."""
    pair, _, examples = work
    ids, labels = examples.select(np.arange(len(examples)))
    expected = jax.jit(pair.model.apply)(
        {"params": pair.params}, *pad(ids, 0, length=14), labels=pad(labels, IGNORED, length=5)[0]
    ).loss
    options = {"batch_size": ROWS, "source_pad_id": 0, "loss_config": LossConfig(chunk=CHUNK)}
    found = loss.corpus_loss(pair.model, pair.params, examples, make_mesh(data=-1), **options)
    assert found == pytest.approx(float(expected), rel=1e-5)
