"""What `generate` takes: functions of the user's own, generation configs of other libraries, lists."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import GenerationConfig
from seq2seq_jax.decoding import engine
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs

BERT = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
SOURCE = np.random.default_rng(0).integers(3, 61, (3, 7))
LENGTH = 8


@pytest.fixture(scope="module")
def pair():
    return from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, seed=3)


def run(pair, **options):
    return np.asarray(pair.generate(SOURCE, max_length=LENGTH, eos_token_id=(), **options).sequences)


def only_odd(scores, context):
    return scores.at[..., ::2].set(-jnp.inf)


def only_even(scores, context):
    return scores.at[..., 1::2].set(-jnp.inf)


def after_four(context):
    return context.length >= 4


def longer_with_the_row(context):
    return jnp.broadcast_to(context.length >= 4 + context.row[:, None], context.sequences.shape[:2])


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"num_beams": 2}, marks=pytest.mark.slow)], ids=["greedy", "beam"]
)
def test_plain_functions(pair, settings):
    odd = run(pair, processors=[only_odd], **settings)
    np.testing.assert_array_equal(odd, run(pair, processors=[jax.tree_util.Partial(only_odd)], **settings))
    assert (odd[:, 1:] % 2 == 1).all()
    assert (run(pair, processors=[only_even], **settings)[:, 1:] % 2 == 0).all(), "one function served for the other"
    assert run(pair, criteria=[after_four], **settings).shape == (3, 4)
    rows = run(pair, criteria=[longer_with_the_row], processors=[only_odd], **settings)
    assert (rows != 0).sum(axis=1).tolist() == [4, 5, 6]


def test_a_function_compiles_once(pair):
    def tens(scores, context):
        return scores.at[..., :10].set(-jnp.inf)

    run(pair, processors=[tens])
    before = engine.decode_segment._cache_size()
    run(pair, processors=[tens])
    assert engine.decode_segment._cache_size() == before
    run(pair, processors=[lambda scores, context: tens(scores, context)])
    assert engine.decode_segment._cache_size() == before + 1


class Unhashable:
    __hash__ = None

    def __call__(self, context):
        return context.length > 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"processors": only_odd}, r"processors is one function; give a list of functions, processors=\[\.\.\.\]"),
        ({"processors": [3]}, "processors has 3; give hashable functions"),
        ({"criteria": [Unhashable()]}, "criteria has .*; give hashable functions"),
        (
            {"processors": [lambda scores, context: scores[0]]},
            r"<lambda> returned scores of shape \[1, 61\]; give \[3, 1, 61\]",
        ),
        ({"criteria": [lambda context: context.row]}, r"criterion <lambda> returned int32 \[3\]; give bool \[3, 1\]"),
        (
            {"criteria": [lambda context: context.row > 0]},
            r"criterion <lambda> returned bool \[3\]; give bool \[3, 1\]",
        ),
        ({"return_dict_in_generate": "yes"}, "return_dict_in_generate is 'yes'; give True, False or None"),
        ({"generation_config": 4}, "generation_config is 4; give a GenerationConfig, ours or transformers'"),
        ({"input_ids": [[3, 4], [5]]}, "input_ids is a ragged list, with rows of 1 to 2; pad it"),
        ({"attention_mask": [[1, 1], [1]]}, "attention_mask is a ragged list, with rows of 1 to 2; pad it"),
        ({"decoder_input_ids": [[3, 4], [5], [6]]}, "decoder_input_ids is a ragged list, with rows of 1 to 2; pad it"),
    ],
)
def test_refusals(pair, options, message):
    with pytest.raises(ValueError, match=message):
        pair.generate(**{"input_ids": SOURCE, "max_length": LENGTH, **options})


def test_return_dict_in_generate(pair):
    expected = pair.generate(SOURCE, max_length=LENGTH)
    np.testing.assert_array_equal(
        pair.generate(SOURCE, max_length=LENGTH, return_dict_in_generate=False), expected.sequences
    )
    out = pair.generate(SOURCE, max_length=LENGTH, return_dict_in_generate=True)
    np.testing.assert_array_equal(out.sequences, expected.sequences)


FIELDS = {"max_length": LENGTH, "no_repeat_ngram_size": 1, "return_dict_in_generate": True, "temperature": None}


@pytest.mark.parametrize("config", [FIELDS, SimpleNamespace(to_dict=lambda: FIELDS)], ids=["mapping", "object"])
def test_generation_configs_of_others(pair, config):
    expected = pair.generate(SOURCE, None, GenerationConfig(max_length=LENGTH, no_repeat_ngram_size=1)).sequences
    np.testing.assert_array_equal(pair.generate(SOURCE, None, config).sequences, expected)
    assert (pair.generate(SOURCE, None, config, no_repeat_ngram_size=0).sequences != expected).any()
    pair.compile_generate(SOURCE.shape, config)


def test_a_field_without_effect_is_told(pair):
    with pytest.warns(UserWarning, match="generation setting guidance_scale 2.0 is unknown and has no effect"):
        pair.generate(SOURCE, None, {"max_length": LENGTH, "guidance_scale": 2.0})


def test_lists(pair):
    mask = np.ones_like(SOURCE)
    expected = pair.generate(SOURCE, mask, max_length=LENGTH).sequences
    batch = {"input_ids": SOURCE.tolist(), "attention_mask": mask.tolist(), "token_type_ids": (0 * mask).tolist()}
    np.testing.assert_array_equal(pair.generate(**batch, max_length=LENGTH).sequences, expected)
