"""The pair that people hold: a model with its parameters, and what can be done with it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig, TransformerConfig
from seq2seq_jax.decoding import scoring
from seq2seq_jax.decoding.generate import GenerateOutput, compile_generate, generate
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.pretrained import saving
from seq2seq_jax.weights.report import Report


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """A model with its parameters and all that is needed to use it and to write it back.

    Attributes:
      model: the linen module. params: its parameters, tied ones stored once.
      generation_config: the checkpoint's own way of generating.
      report: what became of every tensor.
      passthrough: tensors that no forward pass reads, by torch name. dtypes: the source's dtype of each torch tensor.
      generation_source: the generation_config.json that generation_config came from.
    """

    model: EncoderDecoder
    params: Mapping[str, Any]
    generation_config: GenerationConfig = field(default_factory=GenerationConfig)
    report: Report = field(default_factory=Report)
    passthrough: Mapping[str, np.ndarray] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    generation_source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> EncoderDecoderConfig:
        return self.model.config

    def __repr__(self) -> str:
        arrays = jax.tree.leaves(self.params)
        count = sum(math.prod(array.shape) for array in arrays)
        stored = ", ".join(sorted({str(array.dtype) for array in arrays}))
        lines = [
            f"{self.config.model_type}: {count:,} parameters in {stored}, computes in {jnp.dtype(self.model.dtype)}",
            f"encoder: {_describe(self.config.encoder)}",
            f"decoder: {_describe(self.config.decoder)}",
            f"report: {self.report.summary() or 'empty'}",
        ]
        return "Pretrained(\n" + "".join(f"  {line}\n" for line in lines) + ")"

    def generate(self, input_ids=None, attention_mask=None, generation_config=None, **options) -> GenerateOutput:
        """`seq2seq_jax.generate` with this pair's model, parameters and generation_config."""
        settings = self.generation_config if generation_config is None else generation_config
        return generate(self.model, self.params, input_ids, attention_mask, settings, **options)

    def compile_generate(self, shape: tuple[int, int], generation_config=None, **options) -> None:
        """Compiles `generate` for sources of `shape` (batch, length) ahead of its first call."""
        settings = self.generation_config if generation_config is None else generation_config
        compile_generate(self.model, self.params, shape, settings, **options)

    def score(self, input_ids, attention_mask=None, *, labels, token_type_ids=None) -> scoring.ScoreOutput:
        """Log-probabilities of the labels: `seq2seq_jax.score` with this pair's model and parameters."""
        more = {"token_type_ids": token_type_ids}
        return scoring.score(self.model, self.params, input_ids, attention_mask, labels, **more)

    def loss(self, input_ids, attention_mask=None, *, labels, token_type_ids=None) -> jax.Array:
        """Mean cross-entropy of the labels that are not -100, in nats, a float32 scalar; NaN if there is none.

        It is the `loss` of torch's class (dropout off). Gradients are those of `model.apply(...).loss`.

        Args:
          input_ids, attention_mask, labels: int [batch, source], [batch, source] and [batch, target].
        """
        scores = self.score(input_ids, attention_mask, labels=labels, token_type_ids=token_type_ids)
        return -jnp.sum(scores.sequence_log_probs) / jnp.sum(scores.token_counts)

    def save_pretrained(self, path: str | os.PathLike, **options: Any) -> None:
        """Writes a directory that torch loads: `seq2seq_jax.save_pretrained`, whose options it takes."""
        saving.save_pretrained(path, self, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the pair: `seq2seq_jax.push_to_hub`, whose options it takes."""
        return saving.push_to_hub(repo_id, self, **options)

    def for_decoding(self) -> Pretrained:
        """The pair for generation alone, with its parameters in the form that `generate` wants (as int8 after
        `quantize`). Otherwise the first `generate` makes that form and keeps it as a second copy.

        Train, save, resize and quantize the pair that it was made of; the last three raise ValueError here.
        """
        if self.model.unrolled:
            return self
        return self.replace(model=self.model.for_decoding(), params=self.model.decoding_params(self.params))

    def check_stored(self, purpose: str) -> None:
        """Raises ValueError if parameters in decoding form were to be put to `purpose`."""
        if self.model.unrolled:
            raise ValueError(f"this pair is in decoding form, which {purpose}; take the pair it was made of")

    def replace(self, **changes: Any) -> Pretrained:
        """A copy with fields replaced, such as `params` after training."""
        return dataclasses.replace(self, **changes)


def _describe(side: TransformerConfig) -> str:
    return (
        f"{side.source.get('model_type', side.family)}, {side.num_layers} layers, hidden size {side.hidden_size},"
        f" {side.num_heads} heads, vocabulary {side.vocab_size}"
    )


def quantize(pretrained: Pretrained) -> Pretrained:
    """The pair, with decoding in int8: kernels of all layers and of the head have one scale for each output, and the
    activations that meet them one for each token. Parameters, training and saving stay; outputs may differ a little.
    """
    pretrained.check_stored("has the kernels that it has")
    return pretrained.replace(model=pretrained.model.clone(int8=True))
