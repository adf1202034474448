"""What XLA makes of the decode loop: nothing of the cache's size moves, no kernel is copied; few compilations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.decoding import engine
from seq2seq_jax.decoding import generate as generation
from seq2seq_jax.decoding.beam_search import BeamSearch
from seq2seq_jax.decoding.decode_loop import SearchParams, Source
from seq2seq_jax.decoding.generate import generate
from seq2seq_jax.decoding.processors import PaddedVocabulary
from seq2seq_jax.decoding.sampling import Sampling
from seq2seq_jax.models.cache import Cache
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs

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


def compiled_text(pair, strategy=None, batch=BATCH):
    search_params = SearchParams(
        max_length=np.int32(60),
        prompt_length=np.int32(1),
        pad_id=np.int32(0),
        eos_ids=np.array([2], np.int32),
        processors=(PaddedVocabulary(101),),
        penalties={"length_penalty": np.float32(1)},
    )
    ids = np.ones((batch, SOURCE), np.int32)
    source = Source(ids, ids.astype(bool), np.arange(batch, dtype=np.int32))
    strategy = strategy or BeamSearch(BEAMS)
    model, params = pair.model.for_decoding(), pair.model.decoding_params(pair.params)
    # Fresh jits, so that a patched cache is traced anew.
    prefill = lambda *arguments: engine.prefill.__wrapped__(model, strategy, BUCKET, *arguments)
    carry = jax.eval_shape(prefill, params, source, {}, np.ones((batch, 1), np.int32), search_params)
    decode_segment = jax.jit(
        lambda *arguments: engine.decode_segment.__wrapped__(model, strategy, *arguments), donate_argnums=1
    )
    return decode_segment.lower(params, carry, search_params, np.int32(60), np.int32(0)).compile().as_text()


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


def test_loop_over_one_row_moves_neither(pair):
    text = compiled_text(pair, Sampling(1), batch=1)
    assert moves_in_loop(text, min(BUCKET * WIDTH, KERNEL)) == []


def test_a_reordered_cache_would_be_seen(pair, monkeypatch):
    def select(self, parents):
        def moved(store):
            beams = store.reshape(*store.shape[:2], self.length, self.num_beams, store.shape[-1])
            return jnp.take_along_axis(beams, parents[:, None, None, :, None], axis=3).reshape(store.shape)

        return self.replace(values=tuple(map(moved, self.values)))

    monkeypatch.setattr(Cache, "select", select)
    assert moves_in_loop(compiled_text(pair), CACHE)


def test_numbers_do_not_recompile(pair):
    source = np.arange(3, 13).reshape(2, 5)

    def run(**settings):
        before = engine.decode_segment._cache_size(), engine.prefill._cache_size()
        generate(pair.model, pair.params, source, **settings)
        after = engine.decode_segment._cache_size(), engine.prefill._cache_size()
        assert after[0] - before[0] == after[1] - before[1]
        return after[0] - before[0]

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


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_what_was_compiled_ahead_is_not_compiled_again(pair, way, caplog):
    rng = jax.random.key(0) if way.get("do_sample") else None
    settings = pair.generation_config.replace(max_length=12, **way)

    def compiled(run):
        caplog.clear()
        with jax.log_compiles(True):
            run()
        return re.findall(r"Finished XLA compilation of jit\((prefill|decode_segment)\)", caplog.text)

    ids = np.full((3, 7), 5)
    assert compiled(lambda: pair.compile_generate(ids.shape, settings, rng=rng)) == ["prefill", "decode_segment"]
    assert compiled(lambda: pair.generate(ids, None, settings, rng=rng)) == []
