"""Which family reads which checkpoint. A family is one file beside this one; a new one is added to `MODULES`."""

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


class Support(NamedTuple):
    """What is supported of one model_type.

    Attributes:
      encoder, decoder, whole: whether it serves as that; whole: as a sequence-to-sequence model of its own class.
      torch_cross: whether torch too can give this decoder cross-attention.
    """

    model_type: str
    family: str
    encoder: bool
    decoder: bool
    whole: bool
    torch_cross: bool


def families() -> tuple[Support, ...]:
    """Every supported model_type of config.json."""
    return tuple(
        Support(
            model_type=model_type,
            family=family.name,
            encoder="encoder" in family.prefixes,
            decoder="decoder" in family.prefixes,
            whole=family.whole is not None and model_type in family.whole.architectures,
            torch_cross="decoder" in family.prefixes and family.torch_cross,
        )
        for model_type, family in BY_MODEL_TYPE.items()
    )


def as_table() -> str:
    """`families()` and what is left out, as the README's Markdown."""
    yes = lambda there: "yes" if there else "–"
    lines = ["| model_type | encoder | decoder | torch has that decoder's cross-attention | whole model |"]
    lines.append("|---|---|---|---|---|")
    rows: dict[tuple, list[str]] = {}
    for support in families():
        rows.setdefault((support.family, *support[2:]), []).append(support.model_type)
    for (_, encoder, decoder, whole, torch_cross), types in rows.items():
        cross = yes(torch_cross) if decoder else "–"
        lines.append(f"| {', '.join(types)} | {yes(encoder)} | {yes(decoder)} | {cross} | {yes(whole)} |")
    lines += ["", "Left out: " + "; ".join(f"{types} ({reason})" for types, reason in LEFT_OUT.items()) + "."]
    return "\n".join(lines)


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that reads a config.json.

    Raises:
      ValueError: for a `model_type` that no family reads; names the nearest that one does.
    """
    model_type = hf.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        raise ValueError(f"model_type {model_type!r} is not supported: {nearest(str(model_type), BY_MODEL_TYPE)}")
    return BY_MODEL_TYPE[model_type]


def with_defaults(hf: Mapping[str, Any], role: str = "encoder") -> dict[str, Any]:
    """A config.json with its torch class's defaults for the fields that it leaves out, under the class's names."""
    family = family_of(hf)
    return {**family.defaults[hf["model_type"]], **{family.field(name, role): value for name, value in hf.items()}}


def from_hf(
    hf: Mapping[str, Any], role: str, *, cross_attention_size: int | None = None, whole: bool = False
) -> TransformerConfig:
    """The settings of a transformer from its config.json.

    Beside torch's fields it knows use_bidirectional_attention (of a causal LM as encoder) and cross_attention_every (of
    a decoder whose every n-th layer has cross-attention).

    Args:
      role: "encoder" or "decoder".
      cross_attention_size: width of the states that a decoder reads; None is its own width, which is what
        enc_to_dec_proj brings the encoder's states to.
      whole: it is half of a sequence-to-sequence model of its own class.

    Raises:
      ValueError: naming the field, or the model_type that does not serve as `role`.
    """
    family = family_of(hf)
    if role not in ROLES:
        raise ValueError(f"role {role!r} is neither 'encoder' nor 'decoder'")
    if role not in family.prefixes:
        known = ", ".join(support.model_type for support in families() if getattr(support, role))
        raise ValueError(f"model_type {hf['model_type']!r} does not serve as {role}; these do: {known}")
    try:
        full = with_defaults(hf, role)
        settings = family.from_hf(full, role)
        settings = {"padding_idx": _padding_idx(full.get("pad_token_id"), settings["vocab_size"]), **settings}
        if role == "decoder":
            settings["cross_attention_size"] = cross_attention_size or settings["hidden_size"]
            if whole and family.whole.logits_bias:
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


def to_hf(config: TransformerConfig, role: str) -> dict[str, Any]:
    """The config.json of a transformer: its source, with the vocabulary that it has now."""
    out = config.source
    if with_defaults(out, role).get("vocab_size") != config.vocab_size:
        out["vocab_size"] = config.vocab_size
    return out
