"""Warm-started encoder-decoder models in JAX: PyTorch checkpoints in, fine-tuned pairs out.

The names in `__all__` are the public face; everything else may move.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from seq2seq_jax.config import Alias, EncoderDecoderConfig, GenerationConfig, LayerSettings, TransformerConfig
from seq2seq_jax.families.registry import families

if TYPE_CHECKING:
    from seq2seq_jax.decoding.automata import TokenTrie
    from seq2seq_jax.decoding.generate import GenerateOutput, generate
    from seq2seq_jax.decoding.scoring import ScoreOutput, cross_attentions, score, transition_scores
    from seq2seq_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderOutput
    from seq2seq_jax.models.targets import shift_tokens_right
    from seq2seq_jax.parallel.mesh import make_mesh
    from seq2seq_jax.pretrained.loading import from_pretrained
    from seq2seq_jax.pretrained.pair import Pretrained, quantize
    from seq2seq_jax.pretrained.resize import resize_token_embeddings
    from seq2seq_jax.pretrained.saving import push_to_hub, save_decoder, save_encoder, save_orbax, save_pretrained
    from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs, from_encoder_decoder_pretrained
    from seq2seq_jax.text.tokenizer import Tokenizer, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "Alias",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderDecoderOutput",
    "GenerateOutput",
    "GenerationConfig",
    "LayerSettings",
    "Pretrained",
    "ScoreOutput",
    "TokenTrie",
    "Tokenizer",
    "TransformerConfig",
    "cross_attentions",
    "families",
    "from_encoder_decoder_configs",
    "from_encoder_decoder_pretrained",
    "from_pretrained",
    "generate",
    "load_tokenizer",
    "make_mesh",
    "push_to_hub",
    "quantize",
    "resize_token_embeddings",
    "save_decoder",
    "save_encoder",
    "save_orbax",
    "save_pretrained",
    "score",
    "shift_tokens_right",
    "transition_scores",
]

# What is imported when one of its names is first used, so that `import seq2seq_jax` is quick. Type checkers read the
# same names in the block above.
_LAZY = {
    "decoding.automata": ("TokenTrie",),
    "decoding.generate": ("GenerateOutput", "generate"),
    "decoding.scoring": ("ScoreOutput", "cross_attentions", "score", "transition_scores"),
    "models.encoder_decoder": ("EncoderDecoder", "EncoderDecoderOutput"),
    "models.targets": ("shift_tokens_right",),
    "parallel.mesh": ("make_mesh",),
    "pretrained.loading": ("from_pretrained",),
    "pretrained.pair": ("Pretrained", "quantize"),
    "pretrained.resize": ("resize_token_embeddings",),
    "pretrained.saving": ("push_to_hub", "save_decoder", "save_encoder", "save_orbax", "save_pretrained"),
    "pretrained.warm_start": ("from_encoder_decoder_configs", "from_encoder_decoder_pretrained"),
    "text.tokenizer": ("Tokenizer", "load_tokenizer"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
