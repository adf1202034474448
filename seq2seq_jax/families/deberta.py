"""DeBERTa, v2 and v3 (transformers.DebertaModel, DebertaV2Model), encoders: disentangled attention."""

from seq2seq_jax.config import Disentangled, LayerSettings
from seq2seq_jax.families.rules import (
    Family,
    fused_in,
    heads_bias,
    linear_in,
    linear_out,
    linear_rules,
    norm_rules,
    rule,
)
from seq2seq_jax.families.shared import BERT, BERT_DEFAULTS, BERT_IGNORED, bert_embedding_rules, read_fields


def from_hf(hf, role):
    first, kinds = hf["model_type"] == "deberta", hf["pos_att_type"] or ()
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    if hf.get("conv_kernel_size") or hf.get("talking_head"):
        raise ValueError("conv_kernel_size and talking_head are not built; use a DeBERTa without them (v3 has none)")
    relative, size = None, hf["hidden_size"] // hf["num_attention_heads"]
    if hf["relative_attention"]:
        farthest = hf["max_relative_positions"]
        relative = Disentangled(
            max_distance=hf["max_position_embeddings"] if farthest < 1 else farthest,
            buckets=0 if first else max(0, hf["position_buckets"]),
            content_to_position="c2p" in kinds,
            position_to_content="p2c" in kinds,
            shared_projections=not first and hf["share_att_key"],
            key_bias=not first,
            norm=not first and "layer_norm" in hf["norm_rel_ebd"].lower(),
        )
    count = 1 + ("c2p" in kinds) + ("p2c" in kinds)
    positions = "learned" if hf["position_biased_input"] else "none"
    more = {"attention_key_bias": False} if first else {}
    pattern = (LayerSettings(attention_scale=(size * count) ** -0.5),)
    more |= {"embedding_size": hf.get("embedding_size") or hf["hidden_size"]}
    if more["embedding_size"] != hf["hidden_size"]:
        raise ValueError("embedding_size other than hidden_size is not built; use a DeBERTa where they are equal")
    return read_fields(hf, BERT, disentangled=relative, positions=positions, layer_pattern=pattern, **more)


def rules(config):
    layer, flax = "encoder.layer.{layer}", "layers/{layer}"
    own, there, h, d = f"{flax}/self_attention", f"{layer}.attention.self", config.num_heads, config.head_dim
    table, relative = bert_embedding_rules(config), config.disentangled
    if config.attention_key_bias is False:  # the first version
        paths = tuple(f"{own}/{n}/kernel" for n in ("query", "key", "value"))
        table.append(rule(f"{there}.in_proj.weight", paths, fused_in((h, h, h), d, per_head=True)))
        for name, ours in (("q_bias", "query"), ("v_bias", "value")):
            table.append(rule(f"{there}.{name}", f"{own}/{ours}/bias", heads_bias(h, d)))
    else:
        for name in ("query", "key", "value"):
            table += linear_rules(f"{there}.{name}_proj", f"{own}/{name}", linear_in(h, d), heads_bias(h, d))
    if relative is not None:
        table.append(rule("encoder.rel_embeddings.weight", "relative_table/table/embedding"))
        table += norm_rules("encoder.LayerNorm", "relative_table/norm") if relative.norm else []
        first = config.attention_key_bias is False
        names = ("pos_proj", "pos_q_proj") if first else ("pos_key_proj", "pos_query_proj")
        if relative.content_to_position and not relative.shared_projections:
            ops = (linear_in(h, d), heads_bias(h, d))
            table += linear_rules(f"{there}.{names[0]}", f"{own}/position_key", *ops, bias=relative.key_bias)
        if relative.position_to_content and not relative.shared_projections:
            table += linear_rules(f"{there}.{names[1]}", f"{own}/position_query", linear_in(h, d), heads_bias(h, d))
    table += linear_rules(f"{layer}.attention.output.dense", f"{own}/out", linear_out(h, d))
    table += norm_rules(f"{layer}.attention.output.LayerNorm", f"{flax}/self_attention_norm")
    table += linear_rules(f"{layer}.intermediate.dense", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.output.dense", f"{flax}/mlp/down")
    return table + norm_rules(f"{layer}.output.LayerNorm", f"{flax}/mlp_norm")


RELATIVE = {"relative_attention": False, "max_relative_positions": -1, "pos_att_type": None}
DEFAULTS = {**BERT_DEFAULTS, **RELATIVE, "position_biased_input": True, "layer_norm_eps": 1e-7, "type_vocab_size": 0}
SECOND = {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none"}
SIZES = {"vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24}
FAMILY = Family(
    name="deberta",
    defaults={
        "deberta": {**DEFAULTS, "vocab_size": 50265},
        "deberta-v2": {**DEFAULTS, **SECOND, **SIZES, "intermediate_size": 6144},
    },
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "deberta.")},
    ignored=BERT_IGNORED,
)
