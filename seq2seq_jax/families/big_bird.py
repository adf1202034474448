"""BigBird (transformers.BigBirdModel, BigBirdForCausalLM) with full attention.

An encoder with attention_type block_sparse is accepted up to the length at which torch too attends fully; beyond that,
give attention_type="original_full".
"""

from dataclasses import replace

from seq2seq_jax.families import bert
from seq2seq_jax.families.shared import BERT_DEFAULTS

LIMIT = (
    "beyond it BigBird attends block-sparsely, which is not built; cut the text, or load with"
    " encoder_attention_type='original_full' (memory grows by the square of the length)"
)


def from_hf(hf, role):
    settings = bert.from_hf(hf, role)
    settings.update(attention_bias=hf["use_bias"])
    if hf["rescale_embeddings"]:
        settings.update(embedding_scale=hf["hidden_size"] ** 0.5, scale_given_embeddings=True)
    if role == "encoder" and hf["attention_type"] == "block_sparse":
        settings.update(length_limit=((5 + 2 * hf["num_random_blocks"]) * hf["block_size"], LIMIT))
    return settings


TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPARSE = {"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}
MORE = {"vocab_size": 50358, "hidden_act": "gelu_new", "max_position_embeddings": 4096}
FLAGS = {"use_bias": True, "rescale_embeddings": False}
FAMILY = replace(
    bert.FAMILY,
    name="big_bird",
    defaults={"big_bird": {**BERT_DEFAULTS, **TOKENS, **SPARSE, **MORE, **FLAGS}},
    from_hf=from_hf,
)
