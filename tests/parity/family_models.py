"""Tiny random torch checkpoints of every family, and torch references for the pairs that torch does not have."""

from __future__ import annotations

import json

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.parity import torch_models

transformers.logging.set_verbosity_error()

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 24, "max_position_embeddings": 24, **TOKENS}  # fmt: skip
BART = {"vocab_size": 37, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 28, "max_position_embeddings": 24,
        "scale_embedding": True, "decoder_start_token_id": 1, **TOKENS}  # fmt: skip
T5 = {"vocab_size": 37, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
      "pad_token_id": 0, "eos_token_id": 2}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu"}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 6}
# Windows of 3 tokens, so that they matter on 7.
LOCAL = {
    **WIDE,
    "sliding_window": 3,
    "query_pre_attn_scalar": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
}
GEMMA3_LOCAL = {**LOCAL, "rope_parameters": GEMMA3_ROPE}
VISION = {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
DEBERTA = {**SIZES, "relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
GPT2 = {
    "vocab_size": 37,
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
XGLM = {"vocab_size": 37, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4,
        "max_position_embeddings": 24, **TOKENS}  # fmt: skip
OPT = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 24, "word_embed_proj_dim": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
ETTIN = {**SIZES, "num_hidden_layers": 5, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}
LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.1, 1.3], "long_factor": [2.0, 5.0]}
CASES: dict[str, tuple[str, dict]] = {
    "bert": ("bert", SIZES),
    "ernie": ("ernie", {**SIZES, "use_task_id": True}),
    "bert-generation": ("bert-generation", SIZES),
    "roberta": ("roberta", {**SIZES, "pad_token_id": 3, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", SIZES),
    "camembert": ("camembert", SIZES),
    "roberta-prelayernorm": ("roberta-prelayernorm", SIZES),
    "xlm-roberta-xl": ("xlm-roberta-xl", SIZES),
    "data2vec-text": ("data2vec-text", SIZES),
    "electra": ("electra", {**SIZES, "embedding_size": 12}),
    "electra, equal widths": ("electra", {**SIZES, "embedding_size": 16}),
    "distilbert": ("distilbert", {"vocab_size": 37, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24,
                                  "max_position_embeddings": 24}),
    "albert": ("albert", {**SIZES, "num_hidden_layers": 3, "embedding_size": 12}),
    "albert, groups": ("albert", {**SIZES, "num_hidden_layers": 4, "embedding_size": 12, "num_hidden_groups": 2,
                                  "inner_group_num": 2}),
    "mpnet": ("mpnet", {**SIZES, "pad_token_id": 1}),
    "megatron-bert": ("megatron-bert", SIZES),
    "roformer": ("roformer", {**SIZES, "embedding_size": 12}),
    "roformer, values": ("roformer", {**SIZES, "embedding_size": 16, "rotary_value": True}),
    "rembert": ("rembert", {**SIZES, "input_embedding_size": 12, "output_embedding_size": 20}),
    "deberta": ("deberta", {**DEBERTA, "pos_att_type": "c2p|p2c", "max_relative_positions": 5}),
    "deberta, absolute": ("deberta", {**SIZES, "type_vocab_size": 2}),
    "deberta-v2": ("deberta-v2", {**DEBERTA, "pos_att_type": "c2p|p2c"}),
    "deberta-v3": ("deberta-v2", {**DEBERTA, "pos_att_type": "p2c|c2p", "position_buckets": 4, "share_att_key": True,
                                  "norm_rel_ebd": "layer_norm"}),
    "modernbert": ("modernbert", {**SIZES, "num_hidden_layers": 5, "local_attention": 4, "cls_token_id": 1,
                                  "sep_token_id": 2}),
    "modernbert-decoder": ("modernbert-decoder", ETTIN),
    "modernbert-decoder, biases": ("modernbert-decoder", {
        **ETTIN, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True,
        "classifier_activation": "silu", "decoder_bias": False, "tie_word_embeddings": False}),
    "nomic_bert": ("nomic_bert", SIZES),
    "eurobert": ("eurobert", {**GROUPED, "mask_token_id": 3}),
    "longformer": ("longformer", {**SIZES, "attention_window": [4, 8]}),
    "big_bird": ("big_bird", {**SIZES, "sep_token_id": 2, "attention_type": "original_full", "use_bias": False,
                              "rescale_embeddings": True}),
    "gpt2": ("gpt2", GPT2),
    "gpt-sw3": ("gpt-sw3", GPT2),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "gpt_bigcode, all heads": ("gpt_bigcode", {**GPT2, "multi_query": False}),
    "bart": ("bart", BART),
    "mbart": ("mbart", BART),
    "mvp": ("mvp", BART),
    "plbart": ("plbart", BART),
    "marian": ("marian", BART),
    "pegasus": ("pegasus", BART),
    "blenderbot": ("blenderbot", BART),
    "blenderbot-small": ("blenderbot-small", BART),
    "trocr": ("trocr", {**{k: v for k, v in BART.items() if "encoder" not in k}, "hidden_size": 16}),
    "xglm": ("xglm", XGLM),
    "t5": ("t5", T5),
    "t5, gated": ("t5", {**GATED, "tie_word_embeddings": False}),
    "mt5": ("mt5", GATED),
    "umt5": ("umt5", GATED),
    "opt": ("opt", OPT),
    "opt, narrow and post-norm": ("opt", {**OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "gpt_neo": ("gpt_neo", {"vocab_size": 37, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "window_size": 3,
                            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 24, **TOKENS}),
    "gptj": ("gptj", {**GPT2, "n_embd": 24, "rotary_dim": 4, "pad_token_id": 0}),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neox, in sequence": ("gpt_neox", {**SIZES, "use_parallel_residual": False}),
    "llama": ("llama", GROUPED),
    "llama 3": ("llama", {**GROUPED, "rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**WIDE, "sliding_window": 3}),
    "smollm3": ("smollm3", GROUPED | {"no_rope_layers": [1, 0]}),
    "qwen2": ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**WIDE, "rope_parameters": YARN}),
    "phi3": ("phi3", {**GROUPED, "sliding_window": 3, "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    "phi3, longrope": ("phi3", {**GROUPED, "rope_parameters": LONGROPE, "original_max_position_embeddings": 12}),
    "olmo2": ("olmo2", GROUPED),
    "granite": ("granite", {**GROUPED, "embedding_multiplier": 3.0, "attention_multiplier": 0.3,
                            "residual_multiplier": 0.4, "logits_scaling": 2.5}),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", LOCAL),
    "gemma3": ("gemma3_text", {**LOCAL, "rope_parameters": GEMMA3_ROPE}),
    "gemma3, bidirectional": ("gemma3_text", {**LOCAL, "rope_parameters": GEMMA3_ROPE, "sliding_window": 4,
                                              "use_bidirectional_attention": True}),
    "t5gemma": ("t5gemma", {"encoder": LOCAL, "decoder": {**LOCAL, "hidden_size": 16}, "vocab_size": 37}),
    "t5gemma2": ("t5gemma2", {"encoder": {"text_config": {**GEMMA3_LOCAL, "sliding_window": 4},
                                          "vision_config": VISION, "mm_tokens_per_image": 4, "eoi_token_index": 24},
                              "decoder": GEMMA3_LOCAL}),
}  # fmt: skip
NO_ENCODERS = ("trocr", "t5gemma", "t5gemma2")
ENCODERS = [name for name, (kind, _) in CASES.items() if kind not in NO_ENCODERS and "narrow" not in name]
NATIVE = ["bert", "ernie", "bert-generation", "roberta", "xlm-roberta", "camembert", "roberta-prelayernorm",
          "xlm-roberta-xl", "data2vec-text", "electra", "electra, equal widths", "rembert", "roformer",
          "roformer, values", "gpt2", "gpt-sw3", "bart", "mbart", "mvp", "plbart", "marian", "pegasus", "blenderbot",
          "blenderbot-small", "trocr", "xglm"]  # fmt: skip
# Decoders whose cross-attention torch lacks, or that fail in it.
REFERENCED = ["t5", "t5, gated", "mt5", "umt5", "opt", "opt, narrow and post-norm", "gpt_neo", "gptj", "gpt_neox",
              "gpt_neox, in sequence", "modernbert-decoder", "modernbert-decoder, biases", "llama", "llama 3",
              "mistral", "smollm3", "qwen2", "qwen3", "phi3", "phi3, longrope", "olmo2", "granite", "gemma", "gemma2",
              "gemma3"]  # fmt: skip
FORMULA = ["megatron-bert", "big_bird", "gpt_bigcode", "gpt_bigcode, all heads"]
DECODERS = [*NATIVE, *REFERENCED, *FORMULA]
WHOLE = ["bart", "mbart", "mvp", "plbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "t5", "t5, gated",
         "mt5", "umt5", "t5gemma", "t5gemma2"]  # fmt: skip


def config_of(name: str, **changes):
    kind, fields = CASES[name]
    return CONFIG_MAPPING[kind](**{**fields, **changes})


def ready(model, seed: int):
    return torch_models.randomise(model, seed).eval()


T5_ENCODERS = {"t5": transformers.T5EncoderModel, "mt5": transformers.MT5EncoderModel,
               "umt5": transformers.UMT5EncoderModel}  # fmt: skip


def encoder(name: str, seed: int = 0):
    """The torch encoder, and the whole model that it is part of (the same, if none)."""
    torch.manual_seed(seed)
    config = config_of(name)
    if config.model_type in T5_ENCODERS:
        model = ready(T5_ENCODERS[config.model_type](config), seed)
        return model, model
    model = ready(AutoModel.from_config(config), seed)
    half = model.get_encoder() if config.is_encoder_decoder else model
    return half, model


def decoder(name: str, seed: int = 1, **changes):
    """The torch causal LM; with cross-attention where its class has it."""
    torch.manual_seed(seed)
    if CASES[name][0] in ("t5", "mt5", "umt5"):
        return ready(AutoModelForSeq2SeqLM.from_config(config_of(name)), seed)
    if name in NATIVE:
        changes = {"is_decoder": True, "add_cross_attention": True, "is_encoder_decoder": False, **changes}
        if name == "trocr":
            changes["cross_attention_hidden_size"] = 16
    elif name in FORMULA:
        changes = {"is_decoder": True, **changes}
    return ready(AutoModelForCausalLM.from_config(config_of(name, **changes)), seed)


NOMIC = {"embeddings.LayerNorm": "emb_ln", "self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.fc11",
         "mlp.gate_proj": "mlp.fc12", "mlp.down_proj": "mlp.fc2", "post_attention_layernorm": "norm1",
         "post_mlp_layernorm": "norm2", "encoder.layers.": "encoder.encoder.layers."}  # fmt: skip


def as_filed(tensors: dict, encoder_type: str, decoder_type: str, *, concatenate) -> dict:
    """Tensors by the names of a pair's modules, by the names that its file has."""
    moved = {}
    for name, value in tensors.items():
        if encoder_type == "nomic_bert" and name.startswith("encoder."):
            for ours, theirs in NOMIC.items():
                name = name.replace(ours, theirs)
        if decoder_type in T5_ENCODERS:
            name = name.replace("decoder.shared.", "decoder.decoder.embed_tokens.")
        if encoder_type in T5_ENCODERS:
            name = name.replace("encoder.shared.", "encoder.encoder.embed_tokens.")
        if decoder_type in ("xlm-roberta", "camembert", "xlm-roberta-xl") and name.endswith("lm_head.decoder.weight"):
            name = "decoder.roberta.embeddings.word_embeddings.weight"  # tied
        moved[name] = value
    fused = [n for n in moved if n.startswith("encoder.") and "self_attn.q_proj" in n]
    for name in fused if encoder_type == "nomic_bert" else ():
        parts = [moved.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        moved[name.replace("self_attn.q_proj", "attn.Wqkv")] = concatenate(parts)
    return moved


GPTS = ("gptj", "gpt_neo")
ATTENTIONS = {"gpt_neox": "attention", "modernbert-decoder": "attn", "gptj": "attn", "gpt_neo": "attn"}


class Cross(nn.Module):
    """T5Gemma's cross-attention block for a causal LM: norm, attention without positions, norm behind in sandwiches."""

    def __init__(self, lm, width: int):
        super().__init__()
        c, kind = lm.config, lm.config.model_type
        self.heads, self.dim = (
            c.num_attention_heads,
            getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        )
        self.kv_heads = getattr(c, "num_key_value_heads", None) or self.heads
        bias = getattr(c, "attention_bias", False) or kind in ("qwen2", "opt")
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.dim, bias=bias)
        out = {"opt": "out_proj", "modernbert-decoder": "Wo", "gptj": "out_proj", "gpt_neo": "out_proj"}.get(
            kind, "o_proj"
        )
        out_bias = kind == "gpt_neo" or (bias and kind != "qwen2")
        setattr(self, out, nn.Linear(self.heads * self.dim, c.hidden_size, bias=out_bias))
        self.out = [getattr(self, out)]
        if kind in ("qwen3", "gemma3_text"):
            norm = type(lm.model.norm)
            self.q_norm, self.k_norm = norm(self.dim, eps=c.rms_norm_eps), norm(self.dim, eps=c.rms_norm_eps)
        if kind == "olmo2":
            norm, dims = type(lm.model.norm), (self.heads * self.dim, self.kv_heads * self.dim)
            self.q_norm, self.k_norm = (norm(dim, eps=c.rms_norm_eps) for dim in dims)
        self.whole = kind == "olmo2"
        scalar = getattr(c, "query_pre_attn_scalar", None)
        self.scale = getattr(c, "attention_multiplier", None) or (scalar or self.dim) ** -0.5
        if kind == "gpt_neo":
            self.scale = 1.0
        self.cap = getattr(c, "attn_logit_softcapping", None)

    def forward(self, x, states, mask):
        split = lambda t, heads: t.view(*t.shape[:2], heads, self.dim)
        q, k = self.q_proj(x), self.k_proj(states)
        if self.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split(q, self.heads), split(k, self.kv_heads), split(self.v_proj(states), self.kv_heads)
        if hasattr(self, "q_norm") and not self.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        scores = scores.masked_fill(~mask[:, None, None, :].bool(), float("-inf"))
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return self.out[0](y.flatten(2))


class Reference(nn.Module):
    """A pair in torch: an encoder, and a decoder that torch does not pair, with cross-attention hooked in."""

    def __init__(self, encoder, decoder, *, every: int = 1, seed: int = 2):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        torch.manual_seed(seed)
        self.kind, width = decoder.config.model_type, decoder.config.hidden_size
        self.is_t5 = self.kind in ("t5", "mt5", "umt5")
        new = []
        if encoder.config.hidden_size != width:
            self.enc_to_dec_proj = nn.Linear(encoder.config.hidden_size, width)
            new.append(self.enc_to_dec_proj)
        if not self.is_t5:
            for i, layer in enumerate(self.layers()):
                if (i + 1) % every == 0:
                    new += self.insert(layer, width)
        for module in new:
            torch_models.randomise(module, seed)
        self.states = self.mask = None

    def layers(self):
        base = self.decoder.base_model
        return base.decoder.layers if self.kind == "opt" else base.h if self.kind in GPTS else base.layers

    def insert(self, layer, width):
        c, sandwich = self.decoder.config, hasattr(layer, "post_feedforward_layernorm")
        post = self.kind == "opt" and not self.decoder.config.do_layer_norm_before
        cross = Cross(self.decoder, width)
        modern, olmo = self.kind == "modernbert-decoder", self.kind == "olmo2"
        like = getattr(layer, {"opt": "self_attn_layer_norm", "modernbert-decoder": "mlp_norm",
                               "olmo2": "post_attention_layernorm", "gptj": "ln_1",
                               "gpt_neo": "ln_1"}.get(self.kind, "input_layernorm"))  # fmt: skip
        options = {"eps": getattr(c, "rms_norm_eps", None) or getattr(c, "layer_norm_eps", 1e-5)}
        if modern:
            options["bias"] = c.norm_bias
        make = lambda: type(like)(width, **options)
        norm, after = nn.Identity() if olmo else make(), make() if sandwich else None
        names = {"opt": ("encoder_attn", "encoder_attn_layer_norm"),
                 "modernbert-decoder": ("cross_attn", "cross_attn_norm"),
                 "gptj": ("cross_attn", "ln_cross_attn"), "gpt_neo": ("cross_attn", "ln_cross_attn")}  # fmt: skip
        names = names.get(self.kind, ("cross_attn", "pre_cross_attn_layernorm"))
        setattr(layer, names[0], cross)
        setattr(layer, names[1], norm)
        factor = getattr(c, "residual_multiplier", 1.0)
        if sandwich:
            layer.post_cross_attn_layernorm = after
        held = {}

        def block(x):
            states, mask = (t.repeat_interleave(x.shape[0] // t.shape[0], dim=0) for t in (self.states, self.mask))
            y = cross(x if post else norm(x), states, mask)
            return norm(x + y) if post else y if after is None else after(y)

        def keep(module, args, kwargs):
            held["x"] = args[0] if args else kwargs["hidden_states"]

        def add(module, args, output):
            if post:
                return block(output)
            y = output[0] if isinstance(output, tuple) else output
            y = y + block(held["x"] + factor * y)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        layer.register_forward_pre_hook(keep, with_kwargs=True)
        attention = getattr(layer, ATTENTIONS.get(self.kind, "self_attn"))
        if post:
            attention = layer.self_attn_layer_norm
        elif sandwich:
            attention = layer.post_attention_layernorm
        attention.register_forward_hook(add)
        return [cross, norm, *([after] if sandwich else [])]

    def encode(self, input_ids, attention_mask):
        states = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        self.states = self.enc_to_dec_proj(states) if hasattr(self, "enc_to_dec_proj") else states
        self.mask = attention_mask

    def forward(self, input_ids, attention_mask, labels):
        self.encode(input_ids, attention_mask)
        ids = labels.new_full(labels.shape, torch_models.START)
        ids[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == -100, torch_models.PAD)
        mask = (ids != torch_models.PAD).long()
        if self.is_t5:
            more = {"encoder_outputs": (self.states,), "attention_mask": self.mask}
            logits = self.decoder(**more, decoder_input_ids=ids, decoder_attention_mask=mask).logits
        else:
            logits = self.decoder(ids, attention_mask=mask).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return transformers.modeling_outputs.Seq2SeqLMOutput(loss=loss, logits=logits)

    def generate(self, input_ids, attention_mask, **options):
        self.encode(input_ids, attention_mask)
        options.update(pad_token_id=torch_models.PAD, eos_token_id=torch_models.EOS, do_sample=False)
        if self.is_t5:
            start = {"decoder_start_token_id": torch_models.START}
            outputs = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.states)
            return self.decoder.generate(encoder_outputs=outputs, attention_mask=self.mask, **start, **options)
        start = torch.full_like(input_ids[:, :1], torch_models.START)
        return self.decoder.generate(start, attention_mask=torch.ones_like(start), **options)

    def save_pretrained(self, directory, **decoder_fields):
        """A directory as `seq2seq_jax` writes a pair that torch does not have."""
        directory.mkdir(parents=True, exist_ok=True)
        tokens = {"decoder_start_token_id": torch_models.START, "pad_token_id": torch_models.PAD}
        tokens["eos_token_id"] = torch_models.EOS
        sides = {"encoder": self.encoder.config.to_dict()}
        sides["decoder"] = {**self.decoder.config.to_dict(), **decoder_fields}
        content = {"model_type": "encoder-decoder", **sides, **tokens}
        (directory / "config.json").write_text(json.dumps(content, default=str))
        types = (self.encoder.config.model_type, self.kind)
        filed = as_filed(dict(self.state_dict()), *types, concatenate=torch.cat)
        tensors = {name: t.contiguous().clone() for name, t in filed.items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
