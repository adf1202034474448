"""Granite (transformers.GraniteModel, GraniteForCausalLM): LLaMA with four multipliers (muP)."""

from dataclasses import replace

from seq2seq_jax.families import llama


def from_hf(hf, role):
    settings = llama.from_hf(hf, role)
    layers = [replace(s, attention_scale=float(hf["attention_multiplier"])) for s in settings["layer_pattern"]]
    return {
        **settings,
        "layer_pattern": tuple(layers),
        "embedding_scale": float(hf["embedding_multiplier"]),
        "scale_given_embeddings": True,
        "residual_scale": float(hf["residual_multiplier"]),
        "head_scale": 1.0 / hf["logits_scaling"],
    }


FACTORS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
MORE = {"attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, **dict.fromkeys(FACTORS, 1.0)}
FAMILY = replace(
    llama.FAMILY,
    name="granite",
    defaults={"granite": llama.defaults(32000, 4096, 11008, 32, 32, None, 2048, **MORE)},
    from_hf=from_hf,
)
