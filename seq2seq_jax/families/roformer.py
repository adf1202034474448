"""RoFormer (transformers.RoFormerModel, RoFormerForCausalLM): BERT with rotary positions of interleaved pairs."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, linear_rules
from seq2seq_jax.families.shared import (
    BERT,
    BERT_DEFAULTS,
    BERT_IGNORED,
    BERT_POOLER,
    bert_embedding_rules,
    bert_head_rules,
    bert_layer_rules,
    read_fields,
    rotary,
)


def from_hf(hf, role):
    turns = rotary({}, hf["hidden_size"] // hf["num_attention_heads"], interleaved=True, values=hf["rotary_value"])
    size = hf["embedding_size"] or hf["hidden_size"]
    settings = read_fields(
        hf, BERT, embedding_size=size, positions="none", layer_pattern=(LayerSettings(rotary=turns),)
    )
    if role == "decoder":
        tie = hf["tie_word_embeddings"]
        settings.update(causal=True, head=True, head_transform=True, head_bias="trained", tie_head=tie)
    return settings


def rules(config):
    tied = ("cls.predictions.decoder.weight",) if config.head and config.tie_head else ()
    table = bert_embedding_rules(config, tied)
    if config.embedding_size != config.hidden_size:
        table += linear_rules("embeddings_project", "embeddings/projection")
    return [*table, *bert_layer_rules(config), *(bert_head_rules(config) if config.head else [])]


SINES = r"encoder\.embed_positions\.weight"  # computed, not read
SIZES = {"vocab_size": 50000, "embedding_size": None, "max_position_embeddings": 1536, "rotary_value": False}
FAMILY = Family(
    name="roformer",
    defaults={"roformer": {**BERT_DEFAULTS, **SIZES}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "roformer."), "decoder": ("roformer.", "")},
    ignored=BERT_IGNORED,
    passthrough={"encoder": (*BERT_POOLER, SINES), "decoder": (SINES,)},
)
