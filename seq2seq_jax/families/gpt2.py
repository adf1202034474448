"""GPT-2, GPT-SW3 (transformers.GPT2Model as encoder, causal there too; GPT2LMHeadModel as decoder): fused Conv1D."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import IDENTITY, Family, fused_in, linear_rules, norm_rules, rule, split_first
from seq2seq_jax.families.shared import read_fields

FIELDS = {
    "vocab_size": "vocab_size",
    "max_positions": "n_positions",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "activation": "activation_function",
    "dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}


def from_hf(hf, role):
    layers, width, heads = hf["n_layer"], hf["n_embd"], hf["n_head"]
    scale = (width // heads) ** -0.5 if hf["scale_attn_weights"] else 1.0
    pattern = (LayerSettings(attention_scale=scale),)
    if hf.get("scale_attn_by_inverse_layer_idx"):
        pattern = tuple(LayerSettings(attention_scale=scale / (i + 1)) for i in range(layers))
    return read_fields(
        hf,
        FIELDS,
        intermediate_size=hf["n_inner"] or 4 * width,
        norm_position="pre",
        embedding_norm=False,
        padding_idx=None,
        final_norm=True,
        causal=True,
        head=role == "decoder",
        tie_head=hf["tie_word_embeddings"],
        residual_initializer_range=hf["initializer_range"] / (2 * layers) ** 0.5,
        layer_pattern=pattern,
    )


def outer_rules(config):
    """The rules of all tensors but the projections."""
    layer, flax = "h.{layer}", "layers/{layer}"
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [
        rule("wte.weight", "embeddings/token/embedding", also=tied),
        rule("wpe.weight", "embeddings/position/embedding"),
        *norm_rules(f"{layer}.ln_1", f"{flax}/self_attention_norm"),
        *norm_rules(f"{layer}.ln_2", f"{flax}/mlp_norm"),
        *norm_rules("ln_f", "final_norm"),
    ]
    if config.cross_attention_size is not None:
        table += norm_rules(f"{layer}.ln_cross_attn", f"{flax}/cross_attention_norm")
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


def fused(torch, flax, names, op):
    """Weight and bias of a fused projection, which holds several of ours."""
    return [rule(f"{torch}.{theirs}", tuple(f"{flax}/{n}/{ours}" for n in names), op) for theirs, ours in
            (("weight", "kernel"), ("bias", "bias"))]  # fmt: skip


def rules(config):
    layer, flax, h, d = "h.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    own, cross, table = f"{flax}/self_attention", f"{flax}/cross_attention", outer_rules(config)
    op = lambda count: fused_in((h,) * count, d, transposed=False)
    table += fused(f"{layer}.attn.c_attn", own, ("query", "key", "value"), op(3))
    table += linear_rules(f"{layer}.attn.c_proj", f"{own}/out", split_first(h, d))
    table += linear_rules(f"{layer}.mlp.c_fc", f"{flax}/mlp/up", IDENTITY)
    table += linear_rules(f"{layer}.mlp.c_proj", f"{flax}/mlp/down", IDENTITY)
    if config.cross_attention_size is not None:
        table += fused(f"{layer}.crossattention.q_attn", cross, ("query",), op(1))
        table += fused(f"{layer}.crossattention.c_attn", cross, ("key", "value"), op(2))
        table += linear_rules(f"{layer}.crossattention.c_proj", f"{cross}/out", split_first(h, d))
    return table


DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
}
NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
FAMILY = Family(
    name="gpt2",
    defaults={"gpt2": DEFAULTS, "gpt-sw3": DEFAULTS},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "transformer."), "decoder": ("transformer.", "")},
    ignored=(r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)",),
    aliases=NAMES,
    renamed={**NAMES, "intermediate_size": "n_inner"},
)
