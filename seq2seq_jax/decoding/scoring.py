"""What a pair thinks of given outputs: log-probabilities and cross-attention, by one teacher-forced pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.inputs import check_inputs
from seq2seq_jax.models.losses import IGNORED, token_losses
from seq2seq_jax.models.targets import check_ids, shape_of

# Sequences of like length share a compilation.
BUCKET = 32


@struct.dataclass
class ScoreOutput:
    """How probable targets are.

    Attributes:
      token_log_probs: float32 [batch, target], in nats; 0 where the label is -100.
      sequence_log_probs: float32 [batch], their sums. token_counts: int32 [batch], how many there are.
    """

    token_log_probs: jax.Array
    sequence_log_probs: jax.Array
    token_counts: jax.Array

    @property
    def perplexity(self) -> float:
        """exp of minus the mean log-probability of all tokens; NaN if there is none."""
        count = int(jnp.sum(self.token_counts))
        return math.exp(-float(jnp.sum(self.sequence_log_probs)) / count) if count else math.nan


def score(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any,
    attention_mask: Any,
    labels: Any,
    *,
    token_type_ids: Any = None,
) -> ScoreOutput:
    """Log-probabilities of targets, given all that stands before each token. Compiles once per shape.

    Args:
      params: those of the model, stored or in decoding form.
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens; None: all are.
      labels: int [batch * n, target], n targets for each source in a row; -100 where there is nothing to predict. They
        are shifted right to make the decoder's inputs, as in training.

    Raises:
      ValueError: for ids outside the vocabulary, or rows that do not go together.
    """
    inputs = _inputs(model, input_ids, attention_mask, token_type_ids, labels, "labels")
    check_ids("labels", labels, model.config.decoder.vocab_size, allowed=(IGNORED,))
    labels = np.asarray(labels, np.int32)
    log_probs = _log_probs(model, params, {**inputs, "labels": labels}, labels)
    counts = np.sum(labels != IGNORED, axis=1, dtype=np.int32)
    return ScoreOutput(log_probs, jnp.sum(log_probs, axis=1), jnp.asarray(counts))


def transition_scores(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any,
    attention_mask: Any,
    sequences: Any,
    *,
    prompt_length: int = 1,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    token_type_ids: Any = None,
) -> jax.Array:
    """Log-probabilities of the tokens that `generate` wrote: float32 [batch * n, length - prompt_length], 0 behind the
    end. Compiles once per shape, lengths within a multiple of 32.

    Of a beam search without processors, their sum / count ** length_penalty is sequences_scores (`written` counts).

    Args:
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens; None: all are.
      sequences: int [batch * n, length], as `generate` returns them; of prompts without pads before them.
      prompt_length: how many tokens were given, the start token included.
      eos_token_id, pad_token_id: as in `generate`; None: those of the model's config.

    Raises:
      ValueError: for ids outside the vocabulary, rows that do not go together, or a prompt as long as the sequences.
    """
    inputs = _inputs(model, input_ids, attention_mask, token_type_ids, sequences, "sequences")
    check_ids("sequences", sequences, model.config.decoder.vocab_size)
    sequences = np.asarray(sequences, np.int32)
    rows, length = sequences.shape
    if not 1 <= prompt_length < length:
        raise ValueError(
            f"prompt_length is {prompt_length} and the sequences have {length} tokens; give 1 to {length - 1},"
            " the start token included"
        )
    counted = written(model, sequences, prompt_length, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    width = max(length - 1, min(-(-(length - 1) // BUCKET) * BUCKET, model.config.decoder.max_positions))
    ids, labels = np.zeros((rows, width), np.int32), np.full((rows, width), IGNORED, np.int32)
    ids[:, : length - 1] = sequences[:, :-1]
    labels[:, prompt_length - 1 : length - 1] = np.where(counted, sequences[:, prompt_length:], IGNORED)
    log_probs = _log_probs(model, params, {**inputs, "decoder_input_ids": ids}, labels)
    return log_probs[:, prompt_length - 1 : length - 1]


def cross_attentions(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any,
    attention_mask: Any,
    sequences: Any,
    *,
    token_type_ids: Any = None,
) -> tuple[jax.Array, ...]:
    """Which source tokens the decoder looks at: for each layer with cross-attention [batch * n, heads, length, source].

    Row t holds the weights while token t is read, which is when token t + 1 is chosen.

    Args:
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens; None: all are.
      sequences: int [batch * n, length], as `generate` returns them; of prompts without pads before them.

    Raises:
      ValueError: for ids outside the vocabulary, or rows that do not go together.
    """
    inputs = _inputs(model, input_ids, attention_mask, token_type_ids, sequences, "sequences")
    check_ids("sequences", sequences, model.config.decoder.vocab_size)
    sequences = np.asarray(sequences, np.int32)
    return _cross_attentions(model, params, {**inputs, "decoder_input_ids": sequences})


def written(
    model: EncoderDecoder,
    sequences: np.ndarray,
    prompt_length: int = 1,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
) -> np.ndarray:
    """Which tokens of sequences [rows, length] `generate` wrote: bool [rows, length - prompt_length].

    These are all up to the first end token, that included; without one, all up to the last that is no pad.
    """
    config = model.config
    eos = config.eos_token_ids if eos_token_id is None else np.atleast_1d(eos_token_id)
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    new = np.asarray(sequences)[:, prompt_length:]
    ends = np.isin(new, eos)
    behind = np.cumsum(ends, axis=1) - ends > 0
    tail = np.cumprod((new == pad)[:, ::-1], axis=1)[:, ::-1] > 0
    return ~behind & ~(tail & ~ends.any(axis=1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(model: EncoderDecoder, params: Any, inputs: dict[str, Any], labels: jax.Array) -> jax.Array:
    return 0.0 - token_losses(model.apply({"params": params}, **inputs).logits, labels)


@functools.partial(jax.jit, static_argnums=0)
def _cross_attentions(model: EncoderDecoder, params: Any, inputs: dict[str, Any]) -> tuple[jax.Array, ...]:
    return model.apply({"params": params}, **inputs, output_attentions=True).cross_attentions


def _inputs(model: EncoderDecoder, input_ids, attention_mask, token_type_ids, targets, name: str) -> dict[str, Any]:
    """The encoder's inputs, each row as often as it has targets."""
    source, shape = shape_of("input_ids", input_ids), shape_of(name, targets)
    if len(source) != 2 or len(shape) != 2 or not shape[0] or shape[0] % max(source[0], 1):
        raise ValueError(
            f"input_ids has shape {list(source)} and {name} {list(shape)}; give [batch, source] and [batch * n, target]"
        )
    more = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    check_inputs(model.config.encoder, "encoder", ids=input_ids, **more)
    arrays = {key: array for key, array in {"input_ids": input_ids, **more}.items() if array is not None}
    return {key: np.repeat(np.asarray(array, np.int32), shape[0] // source[0], axis=0) for key, array in arrays.items()}
