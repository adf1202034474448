"""GPT-J (transformers.GPTJModel, GPTJForCausalLM): attention and MLP in parallel after one norm, partial rotary."""

from dataclasses import replace

from seq2seq_jax.config import LayerSettings
from seq2seq_jax.families import gpt2
from seq2seq_jax.families.rules import attention_rules, linear_rules, norm_rules, rule
from seq2seq_jax.families.shared import read_fields, rotary


def from_hf(hf, role):
    return read_fields(
        hf,
        gpt2.FIELDS,
        intermediate_size=hf["n_inner"] or 4 * hf["n_embd"],
        padding_idx=None,
        norm_position="pre",
        parallel_residual=True,
        parallel_norm=True,
        embedding_norm=False,
        final_norm=True,
        positions="none",
        causal=True,
        attention_bias=False,
        attention_out_bias=False,
        head=role == "decoder",
        head_bias="trained" if role == "decoder" else "none",
        tie_head=hf["tie_word_embeddings"],
        layer_pattern=(LayerSettings(rotary=rotary({}, hf["rotary_dim"], interleaved=True)),),
    )


def rules(config):
    layer, flax = "h.{layer}", "layers/{layer}"
    tied = ("lm_head.weight",) if config.head and config.tie_head else ()
    table = [rule("wte.weight", "embeddings/token/embedding", also=tied), *norm_rules("ln_f", "final_norm")]
    blocks = {"attn": "self_attention"} | ({"cross_attn": "cross_attention"} if config.cross_attention_size else {})
    for theirs, ours in blocks.items():
        names = [f"{layer}.{theirs}.{n}_proj" for n in ("q", "k", "v", "out")]
        table += attention_rules(config, f"{flax}/{ours}", *names)
        table += norm_rules(f"{layer}.{'ln_1' if theirs == 'attn' else 'ln_cross_attn'}", f"{flax}/{ours}_norm")
    table += linear_rules(f"{layer}.mlp.fc_in", f"{flax}/mlp/up")
    table += linear_rules(f"{layer}.mlp.fc_out", f"{flax}/mlp/down")
    if config.head:
        table += [rule("lm_head.bias", "head/bias", head=True)]
        table += [] if config.tie_head else [rule("lm_head.weight", "head/kernel", head=True)]
    return table


SIZES = {"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64}
MORE = {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
RATES = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TOKENS = {"bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": False}
FAMILY = replace(
    gpt2.FAMILY,
    name="gptj",
    defaults={"gptj": {**SIZES, **MORE, **RATES, **TOKENS}},
    from_hf=from_hf,
    rules=rules,
    torch_cross=False,
)
