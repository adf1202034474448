"""Gemma, Gemma 2 and the text model of Gemma 3 (transformers' *Model and *ForCausalLM): norms whose scale is 1 + w."""

from dataclasses import replace

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families import llama
from seq2seq_jax.families.shared import by_layer, rotary


def layers(hf):
    """Local and global layers, from layer_types or the older patterns: every second or (Gemma 3) sixth is global."""
    kind, count = hf["model_type"], hf["num_hidden_layers"]
    every = 6 if kind == "gemma3_text" else 2
    every = hf.get("sliding_window_pattern") or every if kind == "gemma3_text" else every
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    kinds = ["full_attention"] * count if kind == "gemma" else by_layer(hf, "layer_types") or kinds
    scale = None if kind == "gemma" else hf["query_pre_attn_scalar"] ** -0.5
    dim = hf["head_dim"]
    turns = {name: rotary(hf, dim, name, partial=False) for name in set(kinds)}
    # In Gemma 3's class a bidirectional window counts both directions.
    both_ways = kind == "gemma3_text" and hf.get("use_bidirectional_attention")
    size = hf.get("sliding_window")
    near = None if size is None else size // 2 if both_ways else size - 1
    for name in kinds:
        window = near if name == "sliding_attention" else None
        yield LayerSettings(attention_scale=scale, window=window, rotary=turns[name])


def from_hf(hf, role):
    kind = hf["model_type"]
    # Files of the first Gemma say gelu and mean the tanh approximation; its class does not read hidden_activation.
    act = hf["hidden_act"] if kind == "gemma" else hf["hidden_activation"]
    act = "gelu_pytorch_tanh" if (kind, act) == ("gemma", "gelu") else act
    settings = llama.from_hf({**hf, "hidden_act": act, "mlp_bias": False, "model_type": "llama"}, role)
    settings.update(norm_scale_offset=1.0, embedding_scale=hf["hidden_size"] ** 0.5, layer_pattern=tuple(layers(hf)))
    if kind != "gemma":
        caps = {"attention_softcap": hf["attn_logit_softcapping"], "head_softcap": hf["final_logit_softcapping"]}
        settings.update(norm_position="sandwich", query_key_norm=kind == "gemma3_text", **caps)
    return settings


NORMS = {"self_attention": "input_layernorm", "mlp": "pre_feedforward_layernorm"}
POST_NORMS = {"self_attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}


def rules(config):
    return llama.rules(config, NORMS, POST_NORMS) if config.norm_position == "sandwich" else llama.rules(config)


TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
COMMON = {"head_dim": 256, "attention_bias": False, **TOKENS}
LOCAL = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096}
CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
}


def defaults(vocab, hidden, mlp, count, heads, kv_heads, positions, **more):
    found = llama.defaults(vocab, hidden, mlp, count, heads, kv_heads, positions, tie=True, **COMMON)
    found["hidden_act"] = "gelu_pytorch_tanh"
    return {k: v for k, v in {**found, **more}.items() if not (k == "hidden_act" and "hidden_activation" in more)}


SECOND = defaults(256000, 2304, 9216, 26, 8, 4, 8192, **LOCAL, **CAPS)
THIRD = {"rope_parameters": ROPE, **dict.fromkeys(CAPS)}
FAMILY = replace(
    llama.FAMILY,
    name="gemma",
    defaults={
        "gemma": defaults(256000, 3072, 24576, 28, 16, 16, 8192),
        "gemma2": SECOND,
        "gemma3_text": {**SECOND, "vocab_size": 262208, "max_position_embeddings": 131072, **THIRD},
    },
    from_hf=from_hf,
    rules=rules,
    old_rope={
        "rope_theta": "rope_theta",
        "full_attention": {"rope_theta": "rope_theta", "rope_scaling": True},
        "sliding_attention": {"rope_theta": "rope_local_base_freq"},
    },
)
