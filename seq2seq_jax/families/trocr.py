"""TrOCR's decoder (transformers.TrOCRForCausalLM): BART's, with options."""

from seq2seq_jax.families import bart
from seq2seq_jax.families.rules import Family


def from_hf(hf, role):
    settings = bart.from_hf({**hf, "model_type": "bart"}, role)
    if not hf["use_learned_position_embeddings"]:
        raise ValueError("use_learned_position_embeddings=False is not built; use a TrOCR with learned positions")
    return {**settings, "embedding_norm": hf["layernorm_embedding"]}


def rules(config):
    return bart.rules(config, "output_projection.weight")


NAMES = ("vocab_size", "d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "activation_function",
         "dropout", "attention_dropout", "activation_dropout", "init_std", "scale_embedding",
         "tie_word_embeddings")  # fmt: skip
MORE = {**bart.TOKENS, "max_position_embeddings": 512, "decoder_start_token_id": 2}
FLAGS = {"use_learned_position_embeddings": True, "layernorm_embedding": True}
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "decoder_attention_heads",
    "num_hidden_layers": "decoder_layers",
}
FAMILY = Family(
    name="trocr",
    defaults={"trocr": {**{name: bart.DEFAULTS[name] for name in NAMES}, **MORE, **FLAGS}},
    from_hf=from_hf,
    rules=rules,
    prefixes={"decoder": ("model.decoder.", "decoder.")},
    aliases=ALIASES,
    renamed={**ALIASES, "intermediate_size": "decoder_ffn_dim"},
)
