"""GGUF files of tiny models, written with the `gguf` package as llama.cpp's convert_hf_to_gguf.py writes them."""

import itertools

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

KINDS = (Kind.Q8_0, Kind.F16, Kind.Q4_0, Kind.F32, Kind.BF16, Kind.Q4_1, Kind.Q5_0)
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def interleaved(weights, heads):
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write_model(path, config, state, *, settings=None, tensors=None, kinds=KINDS):
    """Writes a language model.

    Args:
      config: of transformers, as a dict. state: its tensors by torch name (float32 arrays).
      settings: more metadata under the architecture's name. tensors: more tensors by their name in the file.

    Returns:
      The tensors that the file gives, by torch name: what quantization has left of `state`.
    """
    kind = config["model_type"]
    arch = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(path, arch)
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(dim)
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            writer.add_float32(f"{arch}.{name}", config[name])
    for key, value in (settings or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{arch}.{key}", value)
    for key in ("bos", "eos"):
        getattr(writer, f"add_{key}_token_id")(config[f"{key}_token_id"])

    model = gguf.MODEL_ARCH[arch.upper()]
    mapping, order, read = gguf.get_tensor_name_map(model, config["num_hidden_layers"]), itertools.cycle(kinds), {}
    for name, value in state.items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stored = mapping.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        plain = value.ndim == 1
        chosen = Kind.F32 if plain else next(order)
        if name.endswith("norm.weight") and arch.startswith("gemma"):
            value = value + 1
        if arch == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
            value = interleaved(value, heads if ".q_proj" in name else kv_heads)
        data = quantize(value, chosen)
        writer.add_tensor(stored, data, raw_dtype=chosen)
        # Rows are quantized by themselves, so that their order does not matter.
        read[name] = state[name] if plain else dequantize(quantize(state[name], chosen), chosen)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    finish(writer)
    return read


def write_tokenizer(path, kind, tokens, *, scores=None, types=None, merges=None, arch="llama", pre=None, **more):
    """Writes a file with a tokenizer and no tensors; `more`: other fields of tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if scores is not None:
        writer.add_token_scores(scores)
    if types is not None:
        writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    for key, value in more.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{arch}.{key}", 1)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 1), np.float32))
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
