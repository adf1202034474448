"""T5Gemma (transformers.T5GemmaForConditionalGeneration): two Gemma 2, joined by cross-attention."""

from dataclasses import replace

from seq2seq_jax.families import gemma, llama
from seq2seq_jax.families.rules import Seq2Seq


def from_hf(hf, role):
    settings = gemma.from_hf({**hf, "model_type": "gemma2"}, role)
    settings.update(causal=role == "decoder", dropout=hf["dropout_rate"], scale_given_embeddings=True)
    if role == "encoder":  # its window does not include the token itself
        wider = [s if s.window is None else replace(s, window=s.window + 1) for s in settings["layer_pattern"]]
        settings.update(layer_pattern=tuple(wider))
    return settings


NORMS = {"self_attention": "pre_self_attn_layernorm", "mlp": "pre_feedforward_layernorm"}
POST_NORMS = {"self_attention": "post_self_attn_layernorm", "mlp": "post_feedforward_layernorm"}


def rules(config):
    return llama.rules(config, NORMS, POST_NORMS, head="lm_head.out_proj.weight")


# Fields of the model's config.json that apply to both sections, with the torch class's defaults.
ABOVE = {"dropout_rate": 0.0, "attention_dropout": 0.0, "tie_word_embeddings": True}


def section(hf, role):
    """A side's config: its section, and the fields that apply to both."""
    above = {name: hf.get(name, default) for name, default in ABOVE.items()}
    return {**(hf.get(role) or {}), **above, "model_type": "t5_gemma_module"}


FAMILY = replace(
    llama.FAMILY,
    name="t5gemma",
    defaults={name: {**gemma.SECOND, "dropout_rate": 0.0} for name in ("t5_gemma_module", "t5gemma")},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("model.encoder.", "encoder."), "decoder": ("model.decoder.", "decoder.")},
    seq2seq=Seq2Seq(
        architectures={"t5gemma": "T5GemmaForConditionalGeneration"},
        prefixes={"encoder": "model.encoder.", "decoder": "model.decoder."},
        side_config=section,
    ),
)
