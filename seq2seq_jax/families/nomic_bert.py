"""NomicBERT (transformers.NomicBertModel), an encoder: BERT with rotary positions and a gated MLP without biases."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, fused_in, linear_out, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import BERT, BERT_DEFAULTS, BERT_POOLER, read_fields, rotary


def from_hf(hf, role):
    dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    flags = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "mlp_gated": True}
    pattern = (LayerSettings(rotary=rotary(hf, dim, partial=False)),)
    return read_fields(hf, BERT, head_dim=dim, positions="none", layer_pattern=pattern, **flags)


def rules(config):
    """The names of the hub's files, which torch writes too."""
    layer, flax, h, d = "encoder.layers.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    paths = tuple(f"{flax}/self_attention/{name}/kernel" for name in ("query", "key", "value"))
    table = [
        rule("embeddings.word_embeddings.weight", "embeddings/token/embedding"),
        rule("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding"),
        *norm_rules("emb_ln", "embeddings/norm"),
        rule(f"{layer}.attn.Wqkv.weight", paths, fused_in((h, h, h), d)),
        *linear_rules(f"{layer}.attn.out_proj", f"{flax}/self_attention/out", linear_out(h, d), bias=False),
    ]
    for theirs, ours in {"fc11": "up", "fc12": "gate", "fc2": "down"}.items():
        table += linear_rules(f"{layer}.mlp.{theirs}", f"{flax}/mlp/{ours}", bias=False)
    table += norm_rules(f"{layer}.norm1", f"{flax}/self_attention_norm")
    return table + norm_rules(f"{layer}.norm2", f"{flax}/mlp_norm")


SIZES = {"vocab_size": 30528, "hidden_act": "silu", "max_position_embeddings": 2048}
RATES = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROPE = {"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}}
DEFAULTS = {**BERT_DEFAULTS, **SIZES, **RATES, **ROPE}
FAMILY = Family(
    name="nomic_bert",
    defaults={"nomic_bert": {k: v for k, v in DEFAULTS.items() if k != "tie_word_embeddings"}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "nomic_bert.")},
    passthrough={"encoder": BERT_POOLER},
)
