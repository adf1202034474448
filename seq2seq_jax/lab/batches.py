"""What padding, buckets and packing cost an epoch, counted from lengths alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seq2seq_jax.config import BatchConfig, EncoderDecoderConfig, TransformerConfig
from seq2seq_jax.data.plan import BatchPlan, Bucket


class EpochCost(NamedTuple):
    """Of one epoch.

    Attributes:
      steps: batches. tokens: source and target tokens in them, padding included. real_tokens: those that are none.
      product_flops, attention_flops: of forward passes, in products with kernels and between tokens (a multiply-add
        is 2; masked pairs of tokens count). A training step takes three times a forward pass.
    """

    steps: int
    tokens: int
    real_tokens: int
    product_flops: int
    attention_flops: int


def epoch_cost(
    source_lengths: np.ndarray, target_lengths: np.ndarray, settings: BatchConfig, pair: EncoderDecoderConfig
) -> EpochCost:
    """The cost of an epoch of examples of these lengths [examples], in batches as `settings` make them."""
    plan = BatchPlan(source_lengths, target_lengths, settings, seed=0)
    shapes = [plan[t][0] for t in range(plan.batches_per_epoch)]
    return EpochCost(
        len(shapes),
        sum(plan.padded_tokens),
        sum(plan.tokens),
        sum(product_flops(shape, pair) for shape in shapes),
        sum(attention_flops(shape, pair) for shape in shapes),
    )


def product_flops(shape: Bucket, pair: EncoderDecoderConfig) -> int:
    """Of kernels with tokens, in a forward pass of a batch."""
    encoder, decoder, cross = pair.encoder, pair.decoder, _cross_layers(pair.decoder)
    width = pair.decoder.cross_attention_size
    per_source = encoder.num_layers * _layer_parameters(encoder)
    per_source += cross * 2 * width * decoder.num_kv_heads * decoder.head_dim
    per_source += encoder.hidden_size * width if pair.has_projection else 0
    per_target = decoder.num_layers * _layer_parameters(decoder) + decoder.head_size * decoder.padded_vocab_size
    per_target += cross * 2 * decoder.hidden_size * decoder.num_heads * decoder.head_dim
    return 2 * shape.rows * (shape.source_length * per_source + shape.target_length * per_target)


def attention_flops(shape: Bucket, pair: EncoderDecoderConfig) -> int:
    """Of queries with keys, and of their weights with values, in a forward pass of a batch."""
    source, target = shape.source_length, shape.target_length
    encoder = pair.encoder.num_layers * pair.encoder.num_heads * pair.encoder.head_dim * source**2
    pairs = pair.decoder.num_layers * target**2 + _cross_layers(pair.decoder) * target * source
    return 4 * shape.rows * (encoder + pairs * pair.decoder.num_heads * pair.decoder.head_dim)


def _layer_parameters(c: TransformerConfig) -> int:
    """Of the kernels of a layer's self-attention and MLP."""
    attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return attention + (3 if c.mlp_gated else 2) * c.hidden_size * c.intermediate_size


def _cross_layers(c: TransformerConfig) -> int:
    return sum(c.layer(i).cross_attention for i in range(c.num_layers))
