"""DistilBERT (transformers.DistilBertModel), an encoder: BERT without token types, under other names."""

from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules
from seq2seq_jax.families.shared import bert_embedding_rules, read_fields

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "activation": "activation",
    "max_positions": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}


def from_hf(hf, role):
    return read_fields(hf, FIELDS, norm_eps=1e-12)


def rules(config):
    layer, flax = "transformer.layer.{layer}", "layers/{layer}"
    names = [f"{layer}.attention.{n}_lin" for n in ("q", "k", "v", "out")]
    return [
        *bert_embedding_rules(config),
        *attention_rules(config, f"{flax}/self_attention", *names),
        *norm_rules(f"{layer}.sa_layer_norm", f"{flax}/self_attention_norm"),
        *linear_rules(f"{layer}.ffn.lin1", f"{flax}/mlp/up"),
        *linear_rules(f"{layer}.ffn.lin2", f"{flax}/mlp/down"),
        *norm_rules(f"{layer}.output_layer_norm", f"{flax}/mlp_norm"),
    ]


SIZES = {"vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072, "activation": "gelu"}
RATES = {"dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02}
FAMILY = Family(
    name="distilbert",
    defaults={"distilbert": {**SIZES, **RATES, "max_position_embeddings": 512, "pad_token_id": 0}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "distilbert.")},
    ignored=(r"embeddings\.position_ids",),
    aliases={"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    renamed={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
)
