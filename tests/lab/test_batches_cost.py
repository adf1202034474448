"""What ways to make batches cost."""

import flax.linen as nn
import jax
import numpy as np

from seq2seq_jax.config import BatchConfig, EncoderDecoderConfig
from seq2seq_jax.data.plan import Bucket
from seq2seq_jax.families.registry import from_hf
from seq2seq_jax.lab.batches import attention_flops, epoch_cost, product_flops
from seq2seq_jax.models.encoder_decoder import EncoderDecoder

SIZES = {"vocab_size": 1024, "num_hidden_layers": 1, "max_position_embeddings": 256}
BERT = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256, **SIZES}
LLAMA = {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2,
         "intermediate_size": 128, **SIZES}  # fmt: skip


def test_cost():
    config = EncoderDecoderConfig(from_hf(BERT, "encoder"), from_hf(LLAMA, "decoder"), 1, 0, (2,))
    model = EncoderDecoder(config)
    shape = Bucket(2, 256, 64)
    ids = jax.ShapeDtypeStruct((2, 256), np.int32), jax.ShapeDtypeStruct((2, 64), np.int32)
    forward = jax.jit(lambda params, *ids: model.apply({"params": params}, ids[0], decoder_input_ids=ids[1]).logits)
    counted = forward.lower(nn.unbox(model.parameter_shapes()), *ids).cost_analysis()["flops"]
    estimated = product_flops(shape, config) + attention_flops(shape, config)
    assert 0.9 * counted < estimated < counted, "XLA counts norms and softmaxes too"

    source, target = np.array([200, 50, 60, 90] * 4), np.array([10, 30, 20, 10] * 4)
    ways = {
        "padded": BatchConfig(size=4),
        "buckets": BatchConfig(size=4, buckets=2),
        "packed": BatchConfig(size=4, packing=True, pack_target_length=60),
    }
    cost = {name: epoch_cost(source, target, settings, config) for name, settings in ways.items()}
    assert cost["padded"] == (
        4, 16 * 230, source.sum() + target.sum(),
        4 * product_flops(Bucket(4, 200, 30), config), 4 * attention_flops(Bucket(4, 200, 30), config),
    )  # fmt: skip
    assert cost["padded"].tokens > cost["buckets"].tokens > cost["packed"].tokens >= cost["packed"].real_tokens
