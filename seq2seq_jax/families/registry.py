"""Which family reads which checkpoint. Each family is one file of this folder; `MODULES` lists them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from seq2seq_jax.config import TransformerConfig, nearest
from seq2seq_jax.families import (
    albert,
    bart,
    bert,
    bert_generation,
    big_bird,
    data2vec_text,
    deberta,
    distilbert,
    electra,
    ernie,
    eurobert,
    gemma,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    llama,
    longformer,
    megatron_bert,
    modernbert,
    modernbert_decoder,
    mpnet,
    nomic_bert,
    olmo2,
    opt,
    phi3,
    rembert,
    roberta,
    roberta_prelayernorm,
    roformer,
    t5,
    t5gemma,
    t5gemma2,
    trocr,
    xglm,
    xlm_roberta_xl,
)
from seq2seq_jax.families.reading import inferred_type, normalised
from seq2seq_jax.families.rules import ROLES, Family

MODULES = (
    bert, ernie, bert_generation, roberta, roberta_prelayernorm, xlm_roberta_xl, data2vec_text, electra, megatron_bert,
    rembert, roformer, big_bird, longformer, distilbert, albert, mpnet, deberta, modernbert, modernbert_decoder,
    nomic_bert, eurobert, gpt2, gpt_bigcode, bart, trocr, xglm, t5, t5gemma, t5gemma2, opt, gpt_neo, gptj, gpt_neox,
    llama, phi3, olmo2, granite, gemma,
)  # fmt: skip
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in MODULES}
BY_MODEL_TYPE: dict[str, Family] = {t: family for family in FAMILIES.values() for t in family.model_types}

LEFT_OUT = {
    "prophetnet, xlm-prophetnet": "predicts several tokens at once, with attention streams of its own",
    "bigbird_pegasus, led, longt5": "block-sparse encoders, whose use is in lengths that full attention does not reach",
    "funnel, convbert, mobilebert, squeezebert, nystromformer, fnet, canine": "layers of their own kind",
    "xmod, roc_bert, luke": "adapters, glyphs and entities beside the text",
    "falcon, phi, olmo, mixtral": "causal LMs whose place llama, qwen, gemma and gpt_neox take",
}


# The versions of transformers whose config.json files are compared with torch's classes, by model_type
# (tests/parity/test_hub_configs.py and test_families.py).
_BOTH_FORMS = (
    "bert", "ernie", "bert-generation", "roberta", "xlm-roberta", "camembert", "roberta-prelayernorm",
    "xlm-roberta-xl", "data2vec-text", "electra", "megatron-bert", "rembert", "roformer", "big_bird", "longformer",
    "distilbert", "albert", "mpnet", "deberta", "deberta-v2", "modernbert", "nomic_bert", "eurobert", "gpt2", "gpt-sw3",
    "gpt_bigcode", "bart", "mbart", "mvp", "plbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "trocr",
    "xglm", "t5", "mt5", "umt5", "t5_gemma_module", "t5gemma", "opt", "gpt_neox", "llama", "mistral", "smollm3",
    "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "modernbert-decoder", "phi3", "olmo2", "granite", "gptj",
    "gpt_neo",
)  # fmt: skip
_NEW_FORM = ("t5gemma2_text", "t5gemma2_decoder", "t5gemma2")  # younger than transformers 5
HUB_CONFIGS = {**dict.fromkeys(_BOTH_FORMS, ("4", "5")), **dict.fromkeys(_NEW_FORM, ("5",))}


class Support(NamedTuple):
    """What is supported of one model_type.

    Attributes:
      encoder, decoder: whether it serves as that. seq2seq: whether it is a sequence-to-sequence model of one class.
      torch_cross: whether torch too can give this decoder cross-attention.
    """

    model_type: str
    family: str
    encoder: bool
    decoder: bool
    seq2seq: bool
    torch_cross: bool


def families() -> tuple[Support, ...]:
    """Every supported model_type of config.json."""
    return tuple(
        Support(
            model_type=model_type,
            family=family.name,
            encoder="encoder" in family.prefixes,
            decoder="decoder" in family.prefixes,
            seq2seq=family.seq2seq is not None and model_type in family.seq2seq.architectures,
            torch_cross="decoder" in family.prefixes and family.torch_cross,
        )
        for model_type, family in BY_MODEL_TYPE.items()
    )


def as_table() -> str:
    """`families()`, `HUB_CONFIGS` and what is left out, as the README's Markdown."""
    yes = lambda there: "yes" if there else "–"
    columns = ("model_type", "encoder", "decoder", "torch has that decoder's cross-attention", "whole model")
    lines = [f"| {' | '.join(columns)} | config of the hub |", "|---|---|---|---|---|---|"]
    rows: dict[tuple, list[str]] = {}
    for support in families():
        forms = HUB_CONFIGS.get(support.model_type, ())
        rows.setdefault((support.family, *support[2:], forms), []).append(support.model_type)
    for (_, encoder, decoder, seq2seq, torch_cross, forms), types in rows.items():
        cells = (encoder, decoder, decoder and torch_cross, seq2seq)
        lines.append(f"| {', '.join(types)} | {' | '.join(map(yes, cells))} | {', '.join(forms) or '–'} |")
    lines += ["", "Left out: " + "; ".join(f"{types} ({reason})" for types, reason in LEFT_OUT.items()) + "."]
    return "\n".join(lines)


def with_model_type(hf: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """The config.json with a model_type: its own, or that of the torch class in `architectures`.

    Raises:
      ValueError: if it has neither.
    """
    model_type = inferred_type(hf, BY_MODEL_TYPE)
    if model_type is None:
        named = hf.get("architectures")
        also = f", and its architectures {named} name no supported class" if named else ""
        example = '"model_type": "bert"'
        raise ValueError(f"{where} has no model_type{also}; add the field, such as {example} (README.md lists them)")
    return {**hf, "model_type": model_type}


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that reads a config.json.

    Raises:
      ValueError: for a `model_type` that no family reads; names the nearest one that is read.
    """
    model_type = with_model_type(hf)["model_type"]
    if model_type not in BY_MODEL_TYPE:
        raise ValueError(f"model_type {model_type!r} is not supported: {nearest(str(model_type), BY_MODEL_TYPE)}")
    return BY_MODEL_TYPE[model_type]


def with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of any age as its torch class reads it: newest names and forms, the class's defaults filled in.

    Raises:
      ValueError: naming a field whose value is not of its kind.
    """
    hf = with_model_type(hf)
    family, model_type = family_of(hf), hf["model_type"]
    return normalised(hf, family.defaults[model_type], family.aliases_of(model_type), family.old_rope)


def _check_kind(hf: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that changes the layers and is not supported."""
    kind = hf.get("position_embedding_type") or "absolute"
    if kind != "absolute" and settings.get("positions", "learned") != "none":
        raise ValueError(
            f"position_embedding_type {kind!r} is not built (transformers 5 too lacks it, and computes something else);"
            " use a checkpoint whose positions are 'absolute'"
        )
    if hf.get("per_layer_config"):
        raise ValueError("per_layer_config is not built; use a checkpoint whose layers have one config")


def from_hf(
    hf: Mapping[str, Any], role: str, *, cross_attention_size: int | None = None, is_seq2seq: bool = False
) -> TransformerConfig:
    """The settings of a transformer from its config.json.

    Two fields are not torch's: use_bidirectional_attention (a causal LM as encoder) and cross_attention_every (only
    every n-th layer of the decoder has cross-attention).

    Args:
      role: "encoder" or "decoder".
      cross_attention_size: width of the encoder states that a decoder reads; None: its own hidden_size, to which
        enc_to_dec_proj maps them.
      is_seq2seq: the config.json is that of a sequence-to-sequence model, of which this is half.

    Raises:
      ValueError: naming the field, or the model_type that does not serve as `role`.
    """
    family, hf = family_of(hf), with_model_type(hf)
    if role not in ROLES:
        raise ValueError(f"role {role!r} is neither 'encoder' nor 'decoder'")
    if role not in family.prefixes:
        known = ", ".join(support.model_type for support in families() if getattr(support, role))
        raise ValueError(f"model_type {hf['model_type']!r} does not serve as {role}; these do: {known}")
    try:
        full = with_defaults(hf)
        settings = family.from_hf(full, role)
        settings = {"padding_idx": _padding_idx(full.get("pad_token_id"), settings["vocab_size"]), **settings}
        _check_kind(hf, settings)
        if role == "decoder":
            settings["cross_attention_size"] = cross_attention_size or settings["hidden_size"]
            if is_seq2seq and family.seq2seq.logits_bias:
                settings["head_bias"] = "fixed"
        elif hf.get("use_bidirectional_attention"):
            settings["causal"] = False
        config = TransformerConfig(family=family.name, source_json=json.dumps(dict(hf)), **settings)
    except ValueError as error:
        raise ValueError(f"the {role}'s config.json ({family.name}): {error}") from None
    every = hf.get("cross_attention_every", 1)
    return config if role == "encoder" or every == 1 else _with_cross_every(config, every)


def _padding_idx(pad_token_id: int | None, vocab_size: int) -> int | None:
    """The row that torch.nn.Embedding(padding_idx=pad_token_id) means, where a negative one counts from the end."""
    if pad_token_id is None or not -vocab_size <= pad_token_id < vocab_size:
        return None
    return pad_token_id % vocab_size


def _with_cross_every(config: TransformerConfig, every: int) -> TransformerConfig:
    if not isinstance(every, int) or not 1 <= every <= config.num_layers:
        raise ValueError(f"cross_attention_every is {every!r}; give a number from 1 to {config.num_layers}, the layers")
    if config.merged_attention:
        raise ValueError(
            f"cross_attention_every is {every}, and in {config.family} all layers read the source; leave it out"
        )
    layers = [
        dataclasses.replace(config.layer(i), cross_attention=(i + 1) % every == 0) for i in range(config.num_layers)
    ]
    return dataclasses.replace(config, layer_pattern=tuple(layers))


def to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The config.json of a transformer: its source, with the vocabulary that it has now."""
    out = config.source
    if with_defaults(out).get("vocab_size") != config.vocab_size:
        out["vocab_size"] = config.vocab_size
    return out
