"""Warm-started encoder-decoder models in JAX: PyTorch checkpoints in, fine-tuned pairs out.

The names below are the public face; everything else may move.
"""

from seq2seq_jax.config import (
    Alias,
    EncoderDecoderConfig,
    GenerationConfig,
    LayerSettings,
    TransformerConfig,
)
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.generate import GenerateOutput, generate
from seq2seq_jax.decoding.scoring import ScoreOutput, cross_attentions, score, transition_scores
from seq2seq_jax.families.registry import families
from seq2seq_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderOutput
from seq2seq_jax.models.targets import shift_tokens_right
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.pretrained.pair import (
    Pretrained,
    from_encoder_decoder_configs,
    from_encoder_decoder_pretrained,
    from_pretrained,
    quantize,
)
from seq2seq_jax.pretrained.resize import resize_token_embeddings
from seq2seq_jax.pretrained.saving import save_decoder, save_encoder, save_orbax, save_pretrained
from seq2seq_jax.text.tokenizer import Tokenizer, load_tokenizer

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
