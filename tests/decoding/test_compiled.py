"""What XLA makes of the decode loop: nothing of the cache's size moves, no kernel is copied; few compilations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding import generate as generation
from seq2seq_jax.decoding.generate import decode, generate
from seq2seq_jax.decoding.logits import Numbers, Switches
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.weights.pretrained import from_encoder_decoder_configs

WIDTH, HEADS, BATCH, BEAMS, BUCKET, SOURCE = 64, 4, 2, 4, 64, 40
BERT = {
    "model_type": "bert",
    "vocab_size": 101,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
MOVES = ("gather", "copy", "transpose", "slice", "dynamic-slice", "concatenate", "pad", "reverse", "convert")
KERNEL = WIDTH * WIDTH
CACHE = BATCH * BUCKET * BEAMS * WIDTH


@pytest.fixture(scope="module")
def pair():
    return from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)


def compiled_text(pair):
    one = np.float32(1)
    numbers = Numbers(
        max_length=np.int32(60), min_length=np.int32(0), pad_id=np.int32(0), eos_ids=np.array([2], np.int32),
        forced_bos=np.int32(0), forced_eos=np.array([], np.int32), length_penalty=one, repetition_penalty=one,
        temperature=one, top_k=np.int32(50), top_p=one,
    )  # fmt: skip
    source = np.ones((BATCH, SOURCE), np.int32)
    # A fresh jit, so that a patched cache is traced anew.
    fresh = jax.jit(lambda *arguments: decode.__wrapped__(*arguments), static_argnums=(0, 1, 2))
    return fresh.lower(
        pair.model.for_decoding(), Switches(vocab_size=101, num_beams=BEAMS), BUCKET,
        pair.model.decoding_params(pair.params), source, source.astype(bool), None,
        np.ones((BATCH, 1), np.int32), numbers, None,
    ).compile().as_text()  # fmt: skip


def moves_in_loop(text, at_least):
    """Instructions of the while body, and of all it calls, that move `at_least` elements or more."""
    computations = dict(re.findall(r"^(?:ENTRY )?%([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    found, todo, seen = [], re.findall(r"while\(.*?body=%([\w.\-]+)", text), set()
    assert todo, "there is no while loop in the compiled text"
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += re.findall(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)", computations[name])
        for shape, op in re.findall(r" = \w+\[([\d,]*)\]\S* ([\w\-]+)\(", computations[name]):
            size = int(np.prod([int(n) for n in shape.split(",") if n] or [1]))
            if op in MOVES and size >= at_least:
                found.append(f"{op}[{shape}]")
    return found


def test_loop_moves_neither_cache_nor_kernels(pair):
    text = compiled_text(pair)
    assert moves_in_loop(text, min(CACHE, KERNEL)) == []
    # The reader of the text does read the loop: it holds smaller moves, such as those of the ancestry table.
    assert moves_in_loop(text, BATCH * BEAMS)


def test_a_reordered_cache_would_be_seen(pair, monkeypatch):
    def select(self, parents):
        def moved(store):
            beams = store.reshape(*store.shape[:2], self.length, self.num_beams, store.shape[-1])
            return jnp.take_along_axis(beams, parents[:, None, None, :, None], axis=3).reshape(store.shape)

        return self.replace(keys=tuple(map(moved, self.keys)), values=tuple(map(moved, self.values)))

    monkeypatch.setattr(Cache, "select", select)
    assert moves_in_loop(compiled_text(pair), CACHE)


def test_numbers_do_not_recompile(pair):
    source = np.arange(3, 13).reshape(2, 5)

    def run(**settings):
        before = decode._cache_size()
        generate(pair.model, pair.params, source, **settings)
        return decode._cache_size() - before

    beams = {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.5, "min_length": 3}
    assert run(**beams, max_length=10) == 1
    assert run(**{**beams, "repetition_penalty": 1.1, "min_length": 5}, max_length=20, length_penalty=2.0) == 0
    assert run(**beams, max_new_tokens=31, eos_token_id=7, pad_token_id=4, decoder_start_token_id=9) == 0
    assert run(**beams, max_new_tokens=32) == 1, "another bucket of 32 is another shape"
    assert run(**{**beams, "no_repeat_ngram_size": 3}, max_length=10) == 1, "the size of n-grams is static"
    key = jax.random.key(0)
    sampling = {"do_sample": True, "rng": key, "max_length": 8}
    assert run(**sampling, temperature=0.5, top_k=5, top_p=0.9) == 1
    assert run(**{**sampling, "rng": jax.random.key(1)}, temperature=2.0, top_k=50, top_p=0.5) == 0


def test_parameters_are_unstacked_once(pair, monkeypatch):
    made = []
    real = type(pair.model).decoding_params
    monkeypatch.setattr(type(pair.model), "decoding_params", lambda *a: made.append(1) or real(*a))
    generation._latest.clear()
    params = jax.tree.map(jnp.copy, pair.params)
    for _ in range(3):
        generate(pair.model, params, np.array([[3, 4]]), max_length=4)
    assert len(made) == 1
    generate(pair.model, pair.params, np.array([[3, 4]]), max_length=4)
    assert len(made) == 2
    generate(pair.model, params, np.array([[3, 4]]), max_length=4)
    del params
    assert not generation._latest, "the copy outlives the parameters that it was made of"
