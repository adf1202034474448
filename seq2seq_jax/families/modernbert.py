"""ModernBERT (transformers.ModernBertModel), an encoder: rotary, local and global layers, gated MLP, pre-norm."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, fused_in, fused_rows, linear_out, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import STANDARD, by_layer, read_fields, rotary

FIELDS = {**STANDARD, "activation": "hidden_activation", "norm_eps": "norm_eps", "norm_bias": "norm_bias"}
RATES = {
    "embedding_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "mlp_dropout",
}


def layer_types(hf):
    """full_attention or sliding_attention for each layer, from layer_types or the older field."""
    every = hf.get("global_attn_every_n_layers", 3)
    kinds = ["sliding_attention" if i % every else "full_attention" for i in range(hf["num_hidden_layers"])]
    return by_layer(hf, "layer_types") or kinds


def from_hf(hf, role):
    dim, layers = hf["hidden_size"] // hf["num_attention_heads"], []
    near = hf["sliding_window"] if hf.get("sliding_window") else hf["local_attention"] // 2
    for i, kind in enumerate(layer_types(hf)):
        window = near if kind == "sliding_attention" else None
        layers.append(LayerSettings(window=window, rotary=rotary(hf, dim, kind, partial=False), attention_norm=i > 0))
    bias = {"attention_bias": hf["attention_bias"], "attention_out_bias": hf["attention_bias"]}
    return read_fields(
        hf,
        {**FIELDS, **RATES},
        **bias,
        mlp_bias=hf["mlp_bias"],
        mlp_gated=True,
        norm_position="pre",
        final_norm=True,
        positions="none",
        layer_pattern=tuple(layers),
    )


def rules(config):
    layer, flax, h, d = "layers.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    own, table = f"{flax}/self_attention", common_rules(config)
    for leaf, ours, needed in (("weight", "kernel", True), ("bias", "bias", config.attention_bias)):
        paths = tuple(f"{own}/{n}/{ours}" for n in ("query", "key", "value"))
        table += [rule(f"{layer}.attn.Wqkv.{leaf}", paths, fused_in((h, h, h), d))] if needed else []
    return table + linear_rules(f"{layer}.attn.Wo", f"{own}/out", linear_out(h, d), bias=config.attention_out_bias)


def common_rules(config, tied=()):
    """The rules of all but the attention, which is fused in the encoder only. tied: other full names of the table."""
    layer, flax, bias = "layers.{layer}", "layers/{layer}", {"bias": config.norm_bias}
    table = [rule("embeddings.tok_embeddings.weight", "embeddings/token/embedding", also=tied)]
    table += norm_rules("embeddings.norm", "embeddings/norm", **bias)
    for leaf, ours, needed in (("weight", "kernel", True), ("bias", "bias", config.mlp_bias)):
        paths = (f"{flax}/mlp/gate/{ours}", f"{flax}/mlp/up/{ours}")
        table += [rule(f"{layer}.mlp.Wi.{leaf}", paths, fused_rows(2))] if needed else []
    table += linear_rules(f"{layer}.mlp.Wo", f"{flax}/mlp/down", bias=config.mlp_bias)
    table += norm_rules(f"{layer}.attn_norm", f"{flax}/self_attention_norm", **bias)
    table += norm_rules(f"{layer}.mlp_norm", f"{flax}/mlp_norm", **bias)
    return table + norm_rules("final_norm", "final_norm", **bias)


SIZES = {"vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22}
MORE = {"num_attention_heads": 12, "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5}
FLAGS = {"norm_bias": False, "attention_bias": False, "mlp_bias": False, "local_attention": 128}
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
}
DROPS = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0, "initializer_range": 0.02}
TOKENS = {"pad_token_id": 50283, "bos_token_id": 50281, "eos_token_id": 50282}
FAMILY = Family(
    name="modernbert",
    defaults={"modernbert": {**SIZES, **MORE, **FLAGS, **DROPS, **TOKENS, "rope_parameters": ROPE}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "model.")},
    old_rope={
        "full_attention": {"rope_theta": "global_rope_theta", "rope_scaling": True},
        "sliding_attention": {"rope_theta": "local_rope_theta", "rope_scaling": True},
    },
)
