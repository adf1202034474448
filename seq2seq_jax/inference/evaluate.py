"""A pair on examples: its loss, its outputs, their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from seq2seq_jax.config import LossConfig
from seq2seq_jax.data.encoding import EncodedPairs
from seq2seq_jax.evaluation.loss import corpus_loss
from seq2seq_jax.evaluation.metrics import measure
from seq2seq_jax.inference.corpus import decode_ids
from seq2seq_jax.pretrained.pair import Pretrained
from seq2seq_jax.text.tokenizer import Tokenizers


class Sample(NamedTuple):
    """One example and what the pair made of it."""

    source: str
    reference: str
    output: str


class Evaluation(NamedTuple):
    """scores: loss (nats a target token), perplexity, and those of the metrics (0 to 100). signatures: of the metrics,
    what their scores depend on."""

    scores: dict[str, float]
    samples: list[Sample]
    signatures: dict[str, str]


def evaluate(
    pretrained: Pretrained,
    examples: EncodedPairs,
    tokenizers: Tokenizers,
    mesh: Mesh,
    *,
    metrics: Sequence[str],
    batch_size: int,
    tokenizers_of_metrics: Mapping[str, str] = MappingProxyType({}),
    decode_limit: int | None = None,
    loss_config: LossConfig = LossConfig(),
    progress: bool = False,
) -> Evaluation:
    """The loss of all examples; outputs and scores of `decode_limit` of them, evenly spaced (None: all).

    Args:
      tokenizers_of_metrics: rouge_tokenizer and bleu_tokenize, as `measure` takes them.
      loss_config: see `corpus_loss`.
    """
    fill = tokenizers.source.fill_id
    loss = corpus_loss(
        pretrained.model,
        pretrained.params,
        examples,
        mesh,
        batch_size=batch_size,
        source_pad_id=fill,
        loss_config=loss_config,
        progress=progress,
    )
    count = min(decode_limit or len(examples), len(examples))
    chosen = np.arange(count) * len(examples) // count
    texts = examples.texts(chosen)
    outputs = decode_ids(
        pretrained, examples.select(chosen)[0], tokenizers.target, fill, batch_size=batch_size, progress=progress
    )
    samples = [Sample(*pair, hypotheses[0]) for *pair, hypotheses in zip(*texts, outputs)]
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    outputs, references = [s.output for s in samples], [s.reference for s in samples]
    measured = measure(outputs, references, metrics, **tokenizers_of_metrics)
    return Evaluation(scores | measured.scores, samples, measured.signatures)
