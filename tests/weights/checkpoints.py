"""Tiny checkpoint directories made without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs

BERT = {
    "model_type": "bert",
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 29, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
BART = {
    "model_type": "bart",
    "vocab_size": 33,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 16,
}
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}


def noisy(pair, seed=5, scale=0.3):
    rng = np.random.default_rng(seed)
    noise = lambda x: jnp.asarray(x + scale * rng.standard_normal(x.shape), x.dtype)
    return pair.replace(params=jax.tree.map(noise, pair.params))


def make_pair(encoder=BERT, decoder=BERT, **options):
    return noisy(from_encoder_decoder_configs(encoder, decoder, **TOKENS, **options))


def tensors(directory):
    return load_file(directory / "model.safetensors")


def write(directory, content, config=None):
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, directory / "model.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def standalone(directory, pair, side, config, *, prefix="", rename=None, without=()):
    """One side of a pair as a checkpoint of its own: names without `side.`, the pair's prefix replaced by `prefix`."""
    save_pretrained(directory / "whole", pair)
    inner = {
        "encoder": "",
        "decoder": {"bert": "bert.", "gpt2": "transformer.", "bart": "model.decoder."}[config["model_type"]],
    }
    out = {}
    for name, value in tensors(directory / "whole").items():
        if not name.startswith(side + "."):
            continue
        name = name.removeprefix(side + ".")
        if any(part in name for part in without):
            continue
        name = prefix + name.removeprefix(inner[side]) if name.startswith(inner[side]) else name
        out[rename(name) if rename else name] = value
    return write(directory / "alone", out, config)


def equal(a, b):
    flat_a, flat_b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert set(flat_a) == set(flat_b), set(flat_a) ^ set(flat_b)
    for path, value in flat_a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(flat_b[path]), err_msg=path)


def refused(message, call, *arguments, **options):
    """The call raises a message of one line that matches."""
    with pytest.raises((ValueError, FileNotFoundError, ImportError), match=message) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value).split("\n-----")[0], "more than one line"
