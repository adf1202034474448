"""BART and its relatives (transformers' BART, mBART, MVP, PLBart, Marian, Pegasus, Blenderbot), halves and whole.

They differ in where the norms stand and in the positions.
"""

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.families.rules import Family, Whole, norm_rules, rule
from seq2seq_jax.families.shared import bart_layer_rules

FIELDS = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "hidden_size": "d_model",
    "activation": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "initializer_range": "init_std",
}
PRE = {"norm_position": "pre", "final_norm": True}
VARIANTS = {
    "bart": {"position_offset": 2},
    "mvp": {"position_offset": 2},
    "plbart": {"position_offset": 2},
    "mbart": {"position_offset": 2, **PRE},
    "marian": {"positions": "sinusoidal", "embedding_norm": False},
    "pegasus": {"positions": "sinusoidal", "embedding_norm": False, **PRE},
    "blenderbot": {"embedding_norm": False, **PRE},
    "blenderbot-small": {},
}


def from_hf(hf, role):
    if hf.get("use_prompt"):
        raise ValueError("use_prompt (MVP's prompts) is not built; use a checkpoint without them")
    settings = {ours: hf[theirs] for ours, theirs in FIELDS.items()}
    for theirs, ours in {
        "layers": "num_layers",
        "ffn_dim": "intermediate_size",
        "attention_heads": "num_heads",
    }.items():
        settings[ours] = hf[f"{role}_{theirs}"]
    scale = hf["d_model"] ** 0.5 if hf["scale_embedding"] else 1.0
    settings.update(norm_eps=1e-5, embedding_scale=scale, **VARIANTS[hf["model_type"]])
    if role == "decoder":
        settings.update(causal=True, head=True, tie_head=hf["tie_word_embeddings"])
        settings.update(scale_given_embeddings=hf["model_type"] in ("marian", "pegasus"))
        if hf["model_type"] == "blenderbot-small":
            settings.update(positions_after_norm=True, embedding_scale=1.0)
        settings.update(vocab_size=hf.get("decoder_vocab_size") or hf["vocab_size"])
    else:
        settings.update(float16="clamped")
    return settings


def rules(config: TransformerConfig, head="lm_head.weight"):
    tied = (head,) if config.head and config.tie_head else ()
    table = [
        rule("embed_tokens.weight", "embeddings/token/embedding", also=("model.shared.weight", "shared.weight", *tied))
    ]
    if config.positions == "learned":
        table.append(rule("embed_positions.weight", "embeddings/position/embedding"))
    if config.embedding_norm:
        table += norm_rules("layernorm_embedding", "embeddings/norm")
    if config.final_norm:
        table += norm_rules("layer_norm", "final_norm")
    table += bart_layer_rules(config)
    if config.head and not config.tie_head:
        table.append(rule(head, "head/kernel", head=True))
    return table


SIDE = {"layers": 12, "ffn_dim": 4096, "attention_heads": 16}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DEFAULTS = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    **{f"{role}_{name}": value for role in ("encoder", "decoder") for name, value in SIDE.items()},
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "scale_embedding": False,
    "tie_word_embeddings": True,
}


def defaults(start, forced_eos, d_model=1024, layers=(12, 12), ffn=4096, heads=16, tokens=TOKENS, **more):
    sides = {"ffn_dim": ffn, "attention_heads": heads}
    found = {**DEFAULTS, **{f"{r}_{k}": v for r in ("encoder", "decoder") for k, v in sides.items()}, **tokens}
    found |= {"encoder_layers": layers[0], "decoder_layers": layers[1], "d_model": d_model, **more}
    found |= {} if start is None else {"decoder_start_token_id": start}
    return found | ({} if forced_eos is None else {"forced_eos_token_id": forced_eos})


def sizes(role):
    names = {"num_hidden_layers": "layers", "num_attention_heads": "attention_heads", "intermediate_size": "ffn_dim"}
    return {generic: f"{role}_{theirs}" for generic, theirs in names.items()}


# The encoder's only: a file with num_hidden_layers 12 may have 6 decoder_layers.
ALIASES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}
DOUBLE = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLASSES = {
    "bart": "Bart",
    "mbart": "MBart",
    "mvp": "Mvp",
    "plbart": "PLBart",
    "pegasus": "Pegasus",
    "blenderbot": "Blenderbot",
    "blenderbot-small": "BlenderbotSmall",
}
FAMILY = Family(
    name="bart",
    defaults={
        "bart": defaults(2, 2),
        "mbart": defaults(None, 2),
        "mvp": defaults(2, None, vocab_size=50267),
        "plbart": defaults(
            None, 2, 768, (6, 6), 3072, 12, attention_dropout=0.1, scale_embedding=True, vocab_size=50005
        ),
        "marian": defaults(58100, 0, tokens={"pad_token_id": 58100, "eos_token_id": 0}, vocab_size=58101),
        "pegasus": defaults(0, 1, tokens={"pad_token_id": 0, "eos_token_id": 1}),
        "blenderbot": defaults(1, 2, 2560, (2, 24), 10240, 32, DOUBLE, vocab_size=8008, max_position_embeddings=128),
        "blenderbot-small": defaults(1, 2, 512, (8, 8), 2048, 16, DOUBLE, max_position_embeddings=512),
    },
    from_hf=from_hf,
    rules=rules,
    prefixes={"encoder": ("", "model.encoder.", "encoder."), "decoder": ("model.decoder.", "decoder.")},
    # Sinusoidal positions are computed, not read.
    aside={role: (r"embed_positions\.weight",) for role in ("encoder", "decoder")},
    aliases={**ALIASES, "plbart": {"initializer_range": "init_std"}},
    renamed={"hidden_size": "d_model", "encoder": sizes("encoder"), "decoder": sizes("decoder")},
    whole=Whole(
        architectures={**{t: f"{c}ForConditionalGeneration" for t, c in CLASSES.items()}, "marian": "MarianMTModel"},
        prefixes={"encoder": "model.encoder.", "decoder": "model.decoder."},
        shared=("model.shared.weight",),
        logits_bias=True,
        last_label_first=("mbart", "plbart"),
    ),
)
