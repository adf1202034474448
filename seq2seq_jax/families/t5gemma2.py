"""T5Gemma 2 (transformers.T5Gemma2ForConditionalGeneration), its text: two Gemma 3, the decoder's attention merged."""

from dataclasses import replace

from seq2seq_jax.families import gemma, llama, t5gemma
from seq2seq_jax.families.rules import Op, Seq2Seq, rule

TABLE, OWN = "embed_tokens.weight", "embed_tokens.eoi_embedding"
# Files have either prefix.
ENCODER = ("model.encoder.", "model.encoder.text_model.")
ROW = Op(lambda t: (t[None],), lambda a: a[0][0])
VISION = r"(vision_tower|multi_modal_projector)\..*"


def section(hf, role):
    """A side's config: its section, and the fields of the model's config.json that apply to it."""
    top = hf.get("encoder") or {}
    side = {"model_type": "t5gemma2_text", **(top.get("text_config") or {})} if role == "encoder" else hf["decoder"]
    eoi, tied = top.get("eoi_token_index", 256000), hf.get("tie_word_embeddings", True)
    return {"model_type": "t5gemma2_decoder", "eoi_token_index": eoi, **side, "tie_word_embeddings": tied}


def from_hf(hf, role):
    settings = gemma.from_hf({**hf, "model_type": "gemma3_text"}, role)
    decoder = role == "decoder"
    settings.update(causal=decoder, merged_attention=decoder, dropout=hf["dropout_rate"])
    settings["own_token_id"] = hf["eoi_token_index"]
    if not decoder:  # the window includes the token itself; of an even number, one more lies ahead
        back, ahead = (hf["sliding_window"] + 1) // 2 - 1, hf["sliding_window"] // 2
        near, layers = {"window": back, "window_ahead": ahead}, settings["layer_pattern"]
        settings.update(layer_pattern=tuple(s if s.window is None else replace(s, **near) for s in layers))
    return settings


def rules(config):
    head = "lm_head.out_proj.weight"
    table = llama.rules(config, t5gemma.NORMS, t5gemma.POST_NORMS, head=head)
    table.append(rule(OWN, "embeddings/own_token/embedding", ROW))
    if config.head and config.tie_head:  # both sides share one table, which files have as the encoder's
        also = {name: tuple(f"{prefix}{name}" for prefix in ENCODER) for name in (TABLE, OWN)}
        table = [r._replace(also=(*r.also, *also[r.torch])) if r.torch in also else r for r in table]
    return table


GEMMA3 = gemma.FAMILY.defaults["gemma3_text"]
FAMILY = replace(
    llama.FAMILY,
    name="t5gemma2",
    defaults={
        name: {**GEMMA3, "dropout_rate": 0.0, "eoi_token_index": 256000}
        for name in ("t5gemma2_text", "t5gemma2_decoder", "t5gemma2")
    },
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": (*ENCODER, "encoder.", "encoder.text_model."), "decoder": ("model.decoder.", "decoder.")},
    passthrough={"encoder": (VISION,)},
    causal_lm=False,
    old_rope=gemma.FAMILY.old_rope,
    seq2seq=Seq2Seq(
        architectures={"t5gemma2": "T5Gemma2ForConditionalGeneration"},
        prefixes={"encoder": "model.encoder.", "decoder": "model.decoder."},
        shared=(f"{ENCODER[0]}{TABLE}", f"{ENCODER[0]}{OWN}"),
        shared_by="tie_word_embeddings",
        side_config=section,
    ),
)
