"""GPT-2 (transformers.GPT2Model as encoder, causal there too; GPT2LMHeadModel as decoder): pre-LN, fused Conv1D."""

from seq2seq_jax.config import LayerSettings, TransformerConfig
from seq2seq_jax.families.rules import IDENTITY, Family, linear_rules, norm_rules, rule, split_first, split_last

FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "max_positions",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_inner": "intermediate_size",
    "activation_function": "activation",
    "resid_pdrop": "dropout",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "layer_norm_epsilon": "norm_eps",
    "initializer_range": "initializer_range",
}


def from_hf(hf, role):
    settings = {ours: hf[theirs] for theirs, ours in FIELDS.items()}
    layers, width, heads = hf["n_layer"], hf["n_embd"], hf["n_head"]
    scale = (width // heads) ** -0.5 if hf["scale_attn_weights"] else 1.0
    pattern = (LayerSettings(attention_scale=scale),)
    if hf["scale_attn_by_inverse_layer_idx"]:
        pattern = tuple(LayerSettings(attention_scale=scale / (i + 1)) for i in range(layers))
    settings.update(
        intermediate_size=hf["n_inner"] or 4 * width,
        norm_position="pre",
        embedding_norm=False,
        final_norm=True,
        causal=True,
        head=role == "decoder",
        tie_head=hf["tie_word_embeddings"],
        residual_initializer_range=hf["initializer_range"] / (2 * layers) ** 0.5,
        layer_pattern=pattern,
    )
    return settings


def rules(config: TransformerConfig):
    layer, flax, h, d = "h.{layer}", "layers/{layer}", config.num_heads, config.head_dim
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()

    def fused(torch, *paths):
        op = split_last(len(paths), h, d)
        return [rule(f"{torch}.{t}", tuple(f"{p}/{f}" for p in paths), op) for t, f in
                (("weight", "kernel"), ("bias", "bias"))]  # fmt: skip

    own, cross = f"{flax}/self_attention", f"{flax}/cross_attention"
    table = [
        rule("wte.weight", "embeddings/token/embedding", also=tied),
        rule("wpe.weight", "embeddings/position/embedding"),
        *norm_rules(f"{layer}.ln_1", f"{flax}/self_attention_norm"),
        *fused(f"{layer}.attn.c_attn", f"{own}/query", f"{own}/key", f"{own}/value"),
        *linear_rules(f"{layer}.attn.c_proj", f"{own}/out", split_first(h, d)),
        *norm_rules(f"{layer}.ln_2", f"{flax}/mlp_norm"),
        *linear_rules(f"{layer}.mlp.c_fc", f"{flax}/mlp/up", IDENTITY),
        *linear_rules(f"{layer}.mlp.c_proj", f"{flax}/mlp/down", IDENTITY),
        *norm_rules("ln_f", "final_norm"),
    ]
    if config.cross_attention_size is not None:
        table += norm_rules(f"{layer}.ln_cross_attn", f"{flax}/cross_attention_norm")
        table += fused(f"{layer}.crossattention.q_attn", f"{cross}/query")
        table += fused(f"{layer}.crossattention.c_attn", f"{cross}/key", f"{cross}/value")
        table += linear_rules(f"{layer}.crossattention.c_proj", f"{cross}/out", split_first(h, d))
    if config.head and not config.tie_head:
        table.append(rule("lm_head.weight", "head/kernel", head=True))
    return table


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    defaults={
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
    },
    from_hf=from_hf,
    fields={"encoder": FIELDS, "decoder": {**FIELDS, "tie_word_embeddings": "tie_head"}},
    rules=rules,
    prefixes={"encoder": ("", "transformer."), "decoder": ("transformer.", "")},
    ignored=(r"h\.\d+\.(attn|crossattention)\.(bias|masked_bias)",),
    other_part={"encoder": (r"lm_head\.weight",), "decoder": ()},
    renamed={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)
