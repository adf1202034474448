"""RoBERTa with pre-norm (transformers.RobertaPreLayerNormModel, RobertaPreLayerNormForCausalLM)."""

from seq2seq_jax.families import roberta
from seq2seq_jax.families.rules import norm_rules
from seq2seq_jax.families.shared import bert_embedding_rules, bert_layer_rules


def from_hf(hf, role):
    return {**roberta.from_hf(hf, role), "norm_position": "pre", "final_norm": True}


def rules(config):
    table = bert_embedding_rules(config, roberta.tied_names(config))
    table += bert_layer_rules(config, attention_norm="LayerNorm", mlp_norm="intermediate.LayerNorm")
    return [*table, *norm_rules("LayerNorm", "final_norm"), *roberta.head_rules(config)]


DEFAULTS = {"roberta-prelayernorm": {**roberta.DEFAULTS, "vocab_size": 50265}}
FAMILY = roberta.family("roberta-prelayernorm", DEFAULTS, "roberta_prelayernorm.", rules, from_hf)
