"""GGUF to transformers: config.json from the metadata, and the names and values of tensors.

It is the inverse of convert_hf_to_gguf.py of llama.cpp; see llama-model.cpp there for the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seq2seq_jax.weights.gguf_files import GgufFile

MODEL_TYPES = {
    **{kind: kind for kind in ("llama", "qwen2", "qwen3", "gemma", "gemma2")},
    "gemma3": "gemma3_text",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v")},
    "attn_output": "self_attn.o_proj",
    **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in ("q", "k")},
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
SANDWICH = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FREQS = "rope_freqs.weight"  # LLaMA 3's scaling: what each frequency is divided by
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
LARGEST = {"gemma2": 46, "gemma3_text": 62}  # layers of the 27B models, whose queries are scaled otherwise


def architecture(file: GgufFile) -> str:
    """Which of `MODEL_TYPES`; ValueError for any other."""
    name = file.metadata.get("general.architecture")
    if name not in MODEL_TYPES:
        raise ValueError(
            f"{file.path}: architecture {name!r} is not read from GGUF; {', '.join(MODEL_TYPES)} are, others as a"
            " directory with config.json and model.safetensors"
        )
    return name


def names(file: GgufFile) -> dict[str, str]:
    """Transformers' name of each tensor -> its name in the file.

    Raises:
      ValueError: for a tensor that no model of the architecture has.
    """
    kind = architecture(file)
    layer, out = SANDWICH if kind in ("gemma2", "gemma3") else LAYER, {}
    for stored in file.tensors:
        if stored == ROPE_FREQS and kind == "llama":
            continue  # part of the config
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
        number, stem, suffix = match.groups() if match else (None, stored, None)
        table = TOP if number is None else layer
        if stem not in table:
            raise ValueError(f"{file.path}: nothing is known about the tensor {stored!r} in a {kind} model")
        prefix = "" if number is None else f"model.layers.{number}."
        out[f"{prefix}{table[stem]}.{suffix}"] = stored
    return out


def restored(file: GgufFile, stored: str, values: np.ndarray) -> np.ndarray:
    """Values as transformers has them.

    llama.cpp stores the rows of a head of LLaMA's q and k with its two rotary halves interleaved, and Gemma's norms
    with 1 added.
    """
    kind = architecture(file)
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", stored)
    if kind == "llama" and match:
        heads = _number(file, "attention.head_count" if match[1] == "q" else "attention.head_count_kv")
        halves = values.reshape(heads, -1, 2, *values.shape[1:])  # [heads, half, 2, columns]
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if kind.startswith("gemma") and stored.endswith("norm.weight"):
        return values - values.dtype.type(1)
    return values


def config(file: GgufFile, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """The config.json that transformers would have.

    Args:
      read: a tensor's values by its name in the file.

    Raises:
      ValueError: an architecture or a setting that is not supported, or a setting that the file lacks.
    """
    kind, model_type = architecture(file), MODEL_TYPES[architecture(file)]
    heads, hidden = _number(file, "attention.head_count"), _number(file, "embedding_length")
    head_dim = _number(file, "attention.key_length", hidden // heads)
    turned = _number(file, "rope.dimension_count", head_dim)
    if turned != head_dim:
        raise ValueError(f"{file.path}: {turned} of {head_dim} dimensions of a head are rotary; only all are supported")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{file.path} lacks the tensor 'token_embd.weight'; it is not a whole model")
    out = {
        "model_type": model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _number(file, "context_length"),
        "rms_norm_eps": _decimal(_number(file, "attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(file, read),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{ours: file.metadata.get(f"tokenizer.ggml.{theirs}") for ours, theirs in TOKENS.items()},
    }
    if kind.startswith("gemma"):
        return {**out, **_gemma(file, model_type, out)}
    if kind == "llama":
        window = _number(file, "attention.sliding_window", 0)
        out |= {"model_type": "mistral", "sliding_window": window} if window else {}
        out |= {"attention_bias": True} if "blk.0.attn_q.bias" in file.tensors else {}
        out |= {"mlp_bias": True} if "blk.0.ffn_up.bias" in file.tensors else {}
    return {**out, "hidden_act": "silu"}


def _gemma(file: GgufFile, model_type: str, common: Mapping[str, Any]) -> dict[str, Any]:
    out = {"hidden_activation": "gelu_pytorch_tanh"}
    if model_type == "gemma":
        return out
    layers, heads = common["num_hidden_layers"], common["num_attention_heads"]
    scale = _number(file, "attention.scale", 0.0)
    usual = common["hidden_size"] // heads if layers == LARGEST[model_type] else common["head_dim"]
    third = model_type == "gemma3_text"
    every = _setting(file, "attention.sliding_window_pattern", 6 if third else 2)
    near = every if isinstance(every, list) else [(i + 1) % every != 0 for i in range(layers)]
    rope = common["rope_parameters"]
    if third:
        local = _decimal(_number(file, "rope.freq_base_swa", 10000.0))
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {
        **out,
        "rope_parameters": rope,
        "query_pre_attn_scalar": scale**-2 if scale else usual,
        "sliding_window": _number(file, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if n else "full_attention" for n in near[:layers]],
        "attn_logit_softcapping": _number(file, "attn_logit_softcapping", None if third else 50.0),
        "final_logit_softcapping": _number(file, "final_logit_softcapping", None if third else 30.0),
    }


def _rope(file: GgufFile, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    theta = _decimal(_number(file, "rope.freq_base", 10000.0))
    kind = _setting(file, "rope.scaling.type", "none")
    length = _number(file, "rope.scaling.original_context_length", 0)
    if ROPE_FREQS in file.tensors:
        return {"rope_theta": theta, **_llama3(file, theta, read(ROPE_FREQS).astype(np.float32), length or 8192)}
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise ValueError(
            f"{file.path}: rotary scaling of type {kind!r} is not supported; linear, yarn and LLaMA 3's are"
        )
    out = {"rope_type": kind, "rope_theta": theta, "factor": _decimal(_number(file, "rope.scaling.factor"))}
    if kind == "yarn":
        out["original_max_position_embeddings"] = length or _number(file, "context_length")
        for name in ("beta_fast", "beta_slow"):
            value = _number(file, f"rope.scaling.yarn_{name}", None)
            out |= {} if value is None else {name: _decimal(value)}
    return out


def _llama3(file: GgufFile, theta: float, divisors: np.ndarray, length: int) -> dict[str, Any]:
    """LLaMA 3's scaling, of which the file has only the divisors: all its models have the same two edges."""
    low, high, factor = 1.0, 4.0, float(divisors.max())
    turns = length / (2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors)))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise ValueError(
            f"{file.path}: {ROPE_FREQS} is not LLaMA 3's scaling over {length} positions; others are not read"
        )
    edges = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": length}
    return {"rope_type": "llama3", "factor": _decimal(factor), **edges}


_REQUIRED = object()


def _setting(file: GgufFile, name: str, default: Any = _REQUIRED) -> Any:
    key = f"{architecture(file)}.{name}"
    value = file.metadata.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"{file.path}: its metadata lack {key!r}; convert the model again")
    return value


def _number(file: GgufFile, name: str, default: Any = _REQUIRED) -> Any:
    value = _setting(file, name, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(
                f"{file.path}: {architecture(file)}.{name} differs from layer to layer; that is not supported"
            )
        value = value[0]
    return value


def _decimal(value: float) -> float:
    """The shortest number that is this one in float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
