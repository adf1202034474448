"""What several families share: field names, BERT's and BART's layer names, rotary frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from seq2seq_jax.config import Rotary, TransformerConfig, nearest
from seq2seq_jax.families.rules import Rule, attention_rules, linear_rules, norm_rules, rule

STANDARD = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "activation": "hidden_act",
    "max_positions": "max_position_embeddings",
    "initializer_range": "initializer_range",
}
BERT = {
    **STANDARD,
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "type_vocab_size": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
BERT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
BERT_POOLER = (r"pooler\.(dense\.)?(weight|bias)",)
BERT_IGNORED = (r"embeddings\.position_ids", r"embeddings\.token_type_ids", *BERT_POOLER)


def read_fields(hf: Mapping[str, Any], fields: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Settings read from config.json by `fields` (ours: theirs), and `more`."""
    return {**{ours: hf[theirs] for ours, theirs in fields.items()}, **more}


def by_layer(hf: Mapping[str, Any], name: str) -> list | None:
    """The list `name` of config.json, one entry a layer; None if there is none.

    Raises:
      ValueError: for a list that ends before the layers do.
    """
    given, count = hf.get(name), hf["num_hidden_layers"]
    if given and len(given) < count:
        raise ValueError(f"{name} has {len(given)} entries for {count} layers; give one for each")
    return given[:count] if given else None


def bert_embedding_rules(config: TransformerConfig, tied: tuple[str, ...] = ()) -> list[Rule]:
    """embeddings.{word,position,token_type}_embeddings and embeddings.LayerNorm, those that the config has.

    Args:
      tied: other full names of the token table.
    """
    table = [rule("embeddings.word_embeddings.weight", "embeddings/token/embedding", also=tied)]
    if config.positions == "learned":
        table.append(rule("embeddings.position_embeddings.weight", "embeddings/position/embedding"))
    if config.type_vocab_size:
        table.append(rule("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding"))
    if config.task_vocab_size:
        table.append(rule("embeddings.task_type_embeddings.weight", "embeddings/task_type/embedding"))
    return [*table, *(norm_rules("embeddings.LayerNorm", "embeddings/norm") if config.embedding_norm else ())]


def bert_layer_rules(
    config: TransformerConfig, attention_norm: str = "output.LayerNorm", mlp_norm: str = "output.LayerNorm"
) -> list[Rule]:
    """encoder.layer.N.{attention,crossattention,intermediate,output}; the norms' names vary."""
    layer, flax, table = "encoder.layer.{layer}", "layers/{layer}", []
    blocks = {"attention": "self_attention"}
    if config.cross_attention_size is not None:
        blocks["crossattention"] = "cross_attention"
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.self.{n}" for n in ("query", "key", "value")]
        table += attention_rules(config, f"{flax}/{ours}", *names, f"{layer}.{theirs}.output.dense")
        table += norm_rules(f"{layer}.{theirs}.{attention_norm}", f"{flax}/{ours}_norm")
    table += linear_rules(f"{layer}.intermediate.dense", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.output.dense", f"{flax}/mlp/down")
    return table + norm_rules(f"{layer}.{mlp_norm}", f"{flax}/mlp_norm")


def bart_layer_rules(config: TransformerConfig) -> list[Rule]:
    """layers.N.{self_attn,encoder_attn,fc1,fc2} and their norms, of BART, XGLM and OPT."""
    layer, flax = "layers.{layer}", "layers/{layer}"
    table = []
    blocks = {"self_attn": "self_attention"}
    if config.cross_attention_size is not None:
        blocks["encoder_attn"] = "cross_attention"
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.{n}_proj" for n in ("q", "k", "v", "out")]
        table += attention_rules(config, f"{flax}/{ours}", *names)
        table += norm_rules(f"{layer}.{theirs}_layer_norm", f"{flax}/{ours}_norm")
    table += linear_rules(f"{layer}.fc1", f"{flax}/mlp/up", bias=config.mlp_bias)
    table += linear_rules(f"{layer}.fc2", f"{flax}/mlp/down", bias=config.mlp_bias)
    return table + norm_rules(f"{layer}.final_layer_norm", f"{flax}/mlp_norm")


def lm_head_rules(
    config: TransformerConfig, transform: str, norm: str, kernel: str, biases: tuple[str, ...]
) -> list[Rule]:
    """A masked-language-model head; `kernel` has a rule only where it is not tied."""
    table = []
    if config.head_transform:
        table += linear_rules(transform, "head/transform", head=True)
        table += norm_rules(norm, "head/norm", head=True)
    if config.head_bias != "none":
        # Where torch ties the weight it ties both biases too. Else it adds the kernel's own, which is the first then.
        table.append(rule(biases[0], "head/bias", head=True, also=biases[1:]))
    if not config.tie_head:
        table.append(rule(kernel, "head/kernel", head=True))
    return table


def bert_head_rules(config: TransformerConfig) -> list[Rule]:
    """cls.predictions.{transform,decoder,bias}."""
    head = "cls.predictions"
    biases = (f"{head}.bias", f"{head}.decoder.bias")
    names = (f"{head}.transform.dense", f"{head}.transform.LayerNorm", f"{head}.decoder.weight")
    return lm_head_rules(config, *names, biases if config.tie_head else biases[::-1])


def rotary(
    hf: Mapping[str, Any], head_dim: int, layer_type: str | None = None, *, partial: bool = True, **options: Any
) -> Rotary:
    """The rotary embedding that rope_parameters describes (transformers.modeling_rope_utils).

    Args:
      layer_type: the kind of layer, where rope_parameters has an entry for each.
      partial: whether the torch class turns a part of the features only (partial_rotary_factor); else it turns all.

    Raises:
      ValueError: for a kind of scaling that is not supported, or a value that is not above 0.
    """
    given = dict(hf.get("rope_parameters") or {})
    if layer_type is not None and isinstance(given.get(layer_type), Mapping):
        given = dict(given[layer_type])
    kind = given.get("rope_type", "default")
    original = given.get("original_max_position_embeddings") or hf.get("max_position_embeddings")
    for name in ("rope_theta", "factor", "partial_rotary_factor", "low_freq_factor", "high_freq_factor"):
        value = given.get(name, 1.0)
        if (name, value, kind) == ("factor", None, "yarn"):
            value = given["factor"] = hf["max_position_embeddings"] / original
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; give a number above 0")
    base, part = given.get("rope_theta", 10000.0), given.get("partial_rotary_factor", 1.0)
    if not partial and part != 1.0:
        if kind != "default":
            raise ValueError(f"partial_rotary_factor {part} with rope_type {kind!r} is not built; leave it out")
        part = 1.0
    dim = int(head_dim * part)
    frequencies = (1.0 / np.float32(base) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(float)
    if kind not in SCALINGS:
        raise ValueError(f"rope_type {kind!r} is not supported: {nearest(str(kind), SCALINGS)}")
    missing = [name for name in NEEDED.get(kind, ()) if name not in given]
    if missing:
        raise ValueError(f"rope_type {kind!r} needs {missing[0]} in rope_parameters (or rope_scaling); add it")
    if kind == "longrope":
        original = hf.get("original_max_position_embeddings") or original
        given = {"factor": hf["max_position_embeddings"] / original} | {k: v for k, v in given.items() if v is not None}
        options["longest"] = original
    frequencies, factor = SCALINGS[kind](frequencies, given, base, dim, original)
    return Rotary(tuple(float(f) for f in frequencies), factor=float(factor), **options)


def _llama3(frequencies, given, base, dim, original):
    low, high, factor = (given[n] for n in ("low_freq_factor", "high_freq_factor", "factor"))
    length = 2 * math.pi / frequencies
    smooth = (original / length - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(length > original / low, frequencies / factor, between)
    return np.where(length < original / high, frequencies, scaled), 1.0


def _yarn(frequencies, given, base, dim, original):
    factor = given["factor"]

    def scale(m=1.0):
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = given.get("attention_factor")
    if attention is None:
        m, m_all = given.get("mscale"), given.get("mscale_all_dim")
        attention = scale(m) / scale(m_all) if m and m_all else scale()

    def edge(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = edge(given.get("beta_fast") or 32), edge(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp), attention


def _longrope(frequencies, given, base, dim, original):
    """LongRoPE's short factors (Ding et al. 2024), which hold for sequences of up to `original` tokens."""
    factor, attention = given["factor"], given.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short = np.asarray(given["short_factor"], np.float32)
    if short.shape != frequencies.shape:
        raise ValueError(f"short_factor has {short.size} numbers, and {frequencies.size} frequencies are to be scaled")
    return frequencies / short, attention


NEEDED = {
    "longrope": ("short_factor",),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
SCALINGS = {
    "default": lambda frequencies, *_: (frequencies, 1.0),
    "linear": lambda frequencies, given, *_: (frequencies / given["factor"], 1.0),
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
