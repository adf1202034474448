"""FLOPs by shapes: those of decoding step by step are those of the whole target."""

import pytest

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.families.registry import from_hf
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.training.flops import decode_products, products, source_products

BERT = {"model_type": "bert", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT |= {"intermediate_size": 48}
LLAMA = {"model_type": "llama", "vocab_size": 80, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 12, "tie_word_embeddings": True}


@pytest.mark.parametrize("decoder", [BERT, LLAMA], ids=["bert", "llama"])
def test_decoding_adds_up_to_the_forward_pass(decoder):
    """But for the masked half of the decoder's self-attention, which decoding has not."""
    sides = (from_hf(BERT, "encoder"), from_hf(decoder, "decoder"))
    model = EncoderDecoder(EncoderDecoderConfig(*sides, 1, 0, ()))
    total = lambda found: sum(product.flops for product in found)
    rows, source, target = 3, 5, 4
    steps = sum(total(decode_products(model, rows, source, position)) for position in range(1, target + 1))
    c = model.config.decoder
    masked = c.num_layers * 4 * rows * c.num_heads * c.head_dim * (target**2 - target * (target + 1) / 2)
    assert total(source_products(model, rows, source)) + steps + masked == total(products(model, rows, source, target))
