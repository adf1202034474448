"""ModernBERT as a causal LM, such as Ettin's decoders (transformers.ModernBertDecoderForCausalLM)."""

from dataclasses import replace

from seq2seq_jax.families import modernbert
from seq2seq_jax.families.rules import Family, attention_rules, linear_rules, norm_rules, rule


def from_hf(hf, role):
    settings = modernbert.from_hf(hf, role)
    # Half of local_attention includes the token itself; in the encoder it does not.
    layers = [s if s.window is None else replace(s, window=s.window - 1) for s in settings["layer_pattern"]]
    settings.update(causal=True, layer_pattern=tuple(layers))
    if role == "decoder":
        settings.update(
            head=True,
            head_transform=True,
            head_transform_bias=hf["classifier_bias"],
            head_activation=hf["classifier_activation"],
            head_bias="trained" if hf["decoder_bias"] else "none",
            tie_head=hf["tie_word_embeddings"],
        )
    return settings


def rules(config):
    layer, flax, head, bias = "layers.{layer}", "layers/{layer}", "decoder.weight", {"bias": config.norm_bias}
    table = modernbert.common_rules(config, (head,) if config.head and config.tie_head else ())
    names = [f"{layer}.attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "Wo")]
    table += attention_rules(config, f"{flax}/self_attention", *names)
    if config.cross_attention_size is not None:
        names = [f"{layer}.cross_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "Wo")]
        table += attention_rules(config, f"{flax}/cross_attention", *names)
        table += norm_rules(f"{layer}.cross_attn_norm", f"{flax}/cross_attention_norm", **bias)
    if config.head:
        table += linear_rules("lm_head.dense", "head/transform", bias=config.head_transform_bias, head=True)
        table += norm_rules("lm_head.norm", "head/norm", head=True, **bias)
        table += [rule("decoder.bias", "head/bias", head=True)] if config.head_bias == "trained" else []
        table += [] if config.tie_head else [rule(head, "head/kernel", head=True)]
    return table


HEAD = {"classifier_bias": False, "classifier_activation": "gelu", "decoder_bias": True, "tie_word_embeddings": True}
FAMILY = Family(
    name="modernbert_decoder",
    defaults={"modernbert-decoder": {**modernbert.FAMILY.defaults["modernbert"], **HEAD}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "model."), "decoder": ("model.", "")},
    old_rope=modernbert.FAMILY.old_rope,
    torch_cross=False,
)
