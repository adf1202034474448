"""BERT (transformers.BertModel as encoder, BertLMHeadModel as decoder): post-norm, token types, head transform."""

from seq2seq_jax.families.rules import Family
from seq2seq_jax.families.shared import (
    BERT,
    BERT_DEFAULTS,
    BERT_IGNORED,
    BERT_POOLER,
    bert_embedding_rules,
    bert_head_rules,
    bert_layer_rules,
    read_fields,
)


def from_hf(hf, role):
    settings = read_fields(hf, BERT)
    if role == "decoder":
        tie = hf["tie_word_embeddings"]
        settings.update(causal=True, head=True, head_transform=True, head_bias="trained", tie_head=tie)
    return settings


def rules(config):
    tied = ("cls.predictions.decoder.weight",) if config.head and config.tie_head else ()
    head = bert_head_rules(config) if config.head else []
    return [*bert_embedding_rules(config, tied), *bert_layer_rules(config), *head]


FAMILY = Family(
    name="bert",
    defaults={"bert": BERT_DEFAULTS},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "bert."), "decoder": ("bert.", "")},
    ignored=BERT_IGNORED,
    passthrough={"encoder": BERT_POOLER},
)
