"""Megatron-BERT (transformers.MegatronBertModel, MegatronBertForCausalLM): BERT with pre-norm.

As a decoder of a pair the class of transformers 5.23 fails, so its formula is followed.
"""

from dataclasses import replace

from seq2seq_jax.families import bert
from seq2seq_jax.families.rules import norm_rules
from seq2seq_jax.families.shared import BERT_DEFAULTS, bert_embedding_rules, bert_head_rules, bert_layer_rules


def from_hf(hf, role):
    return {**bert.from_hf(hf, role), "norm_position": "pre", "embedding_norm": False, "final_norm": True}


def rules(config):
    tied = ("cls.predictions.decoder.weight",) if config.head and config.tie_head else ()
    table = [*bert_embedding_rules(config, tied), *bert_layer_rules(config, "ln", "ln")]
    return [*table, *norm_rules("encoder.ln", "final_norm"), *(bert_head_rules(config) if config.head else [])]


SIZES = {"vocab_size": 29056, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
FAMILY = replace(
    bert.FAMILY,
    name="megatron-bert",
    defaults={"megatron-bert": {**BERT_DEFAULTS, **SIZES, "intermediate_size": 4096}},
    from_hf=from_hf,
    rules=rules,
)
