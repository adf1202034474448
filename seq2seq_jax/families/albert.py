"""ALBERT (transformers.AlbertModel), an encoder: factorized embeddings, parameters shared by the layers."""

from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules
from seq2seq_jax.families.shared import BERT, BERT_DEFAULTS, BERT_POOLER, bert_embedding_rules, read_fields


def from_hf(hf, role):
    layers, groups, inner = (hf[n] for n in ("num_hidden_layers", "num_hidden_groups", "inner_group_num"))
    shared = tuple((i * groups // layers) * inner + j for i in range(layers) for j in range(inner))
    return read_fields(hf, BERT, embedding_size=hf["embedding_size"]) | {
        "num_layers": layers * inner,
        "shared_layers": shared,
    }


def rules(config):
    table = bert_embedding_rules(config)
    if config.embedding_size != config.hidden_size:
        table += linear_rules("encoder.embedding_hidden_mapping_in", "embeddings/projection")
    inner = config.source.get("inner_group_num", 1)
    for i in range(config.stored_layers):
        layer = f"encoder.albert_layer_groups.{i // inner}.albert_layers.{i % inner}"
        flax, names = f"layers/layers_{i}", [f"{layer}.attention.{n}" for n in ("query", "key", "value", "dense")]
        table += attention_rules(config, f"{flax}/self_attention", *names)
        table += norm_rules(f"{layer}.attention.LayerNorm", f"{flax}/self_attention_norm")
        table += linear_rules(f"{layer}.ffn", f"{flax}/mlp/up")
        table += linear_rules(f"{layer}.ffn_output", f"{flax}/mlp/down")
        table += norm_rules(f"{layer}.full_layer_layer_norm", f"{flax}/mlp_norm")
    return table


SIZES = {"vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "num_attention_heads": 64}
MORE = {"intermediate_size": 16384, "num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu_new"}
RATES = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "bos_token_id": 2, "eos_token_id": 3}
FAMILY = Family(
    name="albert",
    defaults={"albert": {**BERT_DEFAULTS, **SIZES, **MORE, **RATES}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "albert.")},
    ignored=(r"embeddings\.position_ids",),
    passthrough={"encoder": BERT_POOLER},
)
