"""EuroBERT (transformers.EuroBertModel), an encoder: LLaMA's layers with bidirectional attention."""

from dataclasses import replace

from seq2seq_jax.families import llama


def from_hf(hf, role):
    return {**llama.from_hf(hf, role), "causal": False}


TOKENS = {"pad_token_id": 128001, "bos_token_id": 128000, "eos_token_id": 128001}
SIZES = llama.defaults(128256, 768, 3072, 12, 12, None, 8192, attention_bias=False, mlp_bias=False, **TOKENS)
FAMILY = replace(
    llama.FAMILY,
    name="eurobert",
    defaults={"eurobert": {**SIZES, "rms_norm_eps": 1e-5}},
    from_hf=from_hf,
    prefixes={"encoder": ("", "model.")},
)
