"""XLM-RoBERTa XL (transformers.XLMRobertaXLModel, XLMRobertaXLForCausalLM): pre-norm, no norm on the embeddings."""

from seq2seq_jax.families import roberta
from seq2seq_jax.families.rules import norm_rules
from seq2seq_jax.families.shared import bert_embedding_rules, bert_layer_rules


def from_hf(hf, role):
    return {**roberta.from_hf(hf, role), "norm_position": "pre", "final_norm": True, "embedding_norm": False}


def rules(config):
    table = bert_embedding_rules(config, roberta.tied_names(config))
    table += bert_layer_rules(config, attention_norm="self_attn_layer_norm", mlp_norm="LayerNorm")
    return [*table, *norm_rules("encoder.LayerNorm", "final_norm"), *roberta.head_rules(config)]


SIZES = {"vocab_size": 250880, "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32}
MORE = {"intermediate_size": 10240, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DEFAULTS = {"xlm-roberta-xl": {**roberta.DEFAULTS, **SIZES, **MORE}}
FAMILY = roberta.family("xlm-roberta-xl", DEFAULTS, layers=rules, read=from_hf)
