"""LLaMA, Mistral, SmolLM3, Qwen2, Qwen3 (transformers' *Model and *ForCausalLM): RMS norms, rotary, gated MLP."""

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import STANDARD, by_layer, read_fields, rotary

FIELDS = {**STANDARD, "norm_eps": "rms_norm_eps", "attention_dropout": "attention_dropout"}


WINDOWED = ("mistral", "phi3", "smollm3", "qwen2", "qwen3")
WINDOW_EVERYWHERE = ("mistral", "phi3")
WITHOUT_BIAS = ("mistral", "phi3")
WITH_MLP_BIAS = ("llama", "smollm3", "eurobert", "granite")


def layers(hf):
    """Settings of each layer; layer_types says which have the window if not all do."""
    kind, count = hf["model_type"], hf["num_hidden_layers"]
    turns = rotary(hf, head_dim(hf), partial=kind == "phi3")
    window = hf.get("sliding_window", 4096) if kind in WINDOWED else None
    turned, local = [True] * count, [window is not None] * count
    if kind == "smollm3":
        every = hf["no_rope_layer_interval"]
        turned = by_layer(hf, "no_rope_layers") or [(i + 1) % every != 0 for i in range(count)]
        local = [bool(window and hf["use_sliding_window"] and not turn) for turn in turned]
    elif kind not in WINDOW_EVERYWHERE:
        window = window if hf.get("use_sliding_window") else None
        local = [i >= hf.get("max_window_layers", count) for i in range(count)]
    local = [name == "sliding_attention" for name in by_layer(hf, "layer_types") or ()] or local
    for i in range(count):
        near = window - 1 if window and local[i] else None
        yield LayerSettings(window=near, rotary=turns if turned[i] else None)


def head_dim(hf):
    return hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]


def from_hf(hf, role):
    kind = hf["model_type"]
    bias = kind == "qwen2" or (kind not in WITHOUT_BIAS and hf.get("attention_bias", False))
    return read_fields(
        hf,
        FIELDS,
        head_dim=head_dim(hf),
        num_kv_heads=hf["num_key_value_heads"] or hf["num_attention_heads"],
        norm="rms",
        norm_position="pre",
        embedding_norm=False,
        final_norm=True,
        positions="none",
        attention_bias=bias,
        attention_out_bias=bias and kind != "qwen2",
        query_key_norm=kind == "qwen3",
        mlp_gated=True,
        mlp_bias=kind in WITH_MLP_BIAS and hf.get("mlp_bias", False),
        causal=True,
        head=role == "decoder",
        tie_head=hf["tie_word_embeddings"],
        layer_pattern=tuple(layers(hf)),
    )


NORMS = {"self_attention": "input_layernorm", "mlp": "post_attention_layernorm"}


def rules(config, norms=NORMS, post_norms=None, head="lm_head.weight"):
    """norms, post_norms: torch names of the norms before and after each block; None: there are none."""
    layer, flax = "layers.{layer}", "layers/{layer}"
    tied = (head,) if config.head and config.tie_head else ()
    table = [rule("embed_tokens.weight", "embeddings/token/embedding", also=tied)]
    blocks = {"self_attn": "self_attention"}
    if config.cross_attention_size is not None and not config.merged_attention:
        blocks["cross_attn"] = "cross_attention"
        norms = norms and {**norms, "cross_attention": "pre_cross_attn_layernorm"}
        post_norms = post_norms and {**post_norms, "cross_attention": "post_cross_attn_layernorm"}
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.{n}_proj" for n in ("q", "k", "v", "o")]
        table += attention_rules(config, f"{flax}/{ours}", *names)
        for name in ("query", "key") if config.query_key_norm else ():
            table += norm_rules(f"{layer}.{theirs}.{name[0]}_norm", f"{flax}/{ours}/{name}_norm", bias=False)
    for name in ("gate", "up", "down"):
        table += linear_rules(f"{layer}.mlp.{name}_proj", f"{flax}/mlp/{name}", bias=config.mlp_bias)
    for suffix, names in (("norm", norms or {}), ("post_norm", post_norms or {})):
        for part, theirs in names.items():
            table += norm_rules(f"{layer}.{theirs}", f"{flax}/{part}_{suffix}", bias=False)
    table += norm_rules("norm", "final_norm", bias=False)
    if config.head and not config.tie_head:
        table.append(rule(head, "head/kernel", head=True))
    return table


def defaults(vocab, hidden, mlp, layers, heads, kv_heads, positions, theta=10000.0, tie=False, **more):
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": positions}
    rope = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    rates = {"hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "attention_dropout": 0.0}
    return {**sizes, **rope, **rates, "tie_word_embeddings": tie, **more}


WINDOW = {"use_sliding_window": False, "max_window_layers": 28}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
SMOL = {"pad_token_id": 128004, "bos_token_id": 128000, "eos_token_id": 128001, "no_rope_layer_interval": 4}
SMOL |= {"use_sliding_window": False}
FAMILY = Family(
    name="llama",
    defaults={
        "llama": defaults(32000, 4096, 11008, 32, 32, None, 2048, attention_bias=False, mlp_bias=False, **TOKENS),
        "mistral": defaults(32000, 4096, 14336, 32, 32, 8, 131072, sliding_window=4096, **TOKENS),
        "smollm3": defaults(128256, 2048, 11008, 36, 16, 4, 32768, 2000000.0, True, sliding_window=None, **SMOL),
        "qwen2": defaults(151936, 4096, 22016, 32, 32, 32, 32768, **WINDOW),
        "qwen3": defaults(151936, 4096, 22016, 32, 32, 32, 32768, head_dim=128, attention_bias=False, **WINDOW),
    },
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "model."), "decoder": ("model.", "")},
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
    torch_cross=False,
)
