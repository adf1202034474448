"""ELECTRA (transformers.ElectraModel of a discriminator or generator, ElectraForCausalLM): factorized embeddings."""

from seq2seq_jax.families.rules import Family, linear_rules
from seq2seq_jax.families.shared import (
    BERT,
    BERT_DEFAULTS,
    BERT_IGNORED,
    bert_embedding_rules,
    bert_layer_rules,
    lm_head_rules,
    read_fields,
)

SIZES = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}


def from_hf(hf, role):
    settings = read_fields(hf, BERT, embedding_size=hf["embedding_size"])
    if role == "decoder":
        settings.update(causal=True, head=True, head_transform=True, head_activation="gelu", head_bias="trained")
        settings.update(tie_head=hf["tie_word_embeddings"])
    return settings


def rules(config):
    kernel = "generator_lm_head.weight"
    table = bert_embedding_rules(config, (kernel,) if config.head and config.tie_head else ())
    if config.embedding_size != config.hidden_size:
        table += linear_rules("embeddings_project", "embeddings/projection")
    table += bert_layer_rules(config)
    names = ("generator_predictions.dense", "generator_predictions.LayerNorm", kernel, ("generator_lm_head.bias",))
    return table + lm_head_rules(config, *names) if config.head else table


FAMILY = Family(
    name="electra",
    defaults={"electra": {**BERT_DEFAULTS, **SIZES}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "electra."), "decoder": ("electra.", "")},
    ignored=BERT_IGNORED,
)
