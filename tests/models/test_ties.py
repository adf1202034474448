"""Tied parameters stand once in the tree, whichever way of flax.linen the pair is called."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import seq2seq_jax as s2s
from seq2seq_jax.models import ties

SIZES = {"model_type": "bert", "vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 12, "max_position_embeddings": 16}  # fmt: skip
IDS = jnp.asarray([[5, 7, 9, 3], [4, 8, 6, 2]])
TIES = {
    "head": {},
    "embeddings": {"tie_encoder_decoder": "embeddings"},
    "all": {"tie_encoder_decoder": True},
    "layers": {"tie_encoder_decoder": (s2s.Alias("encoder/layers/stacked", "decoder/layers/stacked"),)},
}


class Classifier(nn.Module):
    """Somebody's own module, which holds a pair."""

    pair: s2s.EncoderDecoder

    @nn.compact
    def __call__(self, ids):
        return self.pair(ids, decoder_input_ids=ids).logits, nn.Dense(2)(jnp.zeros((1, 3)))


@pytest.fixture(scope="module", params=TIES)
def pair(request):
    return s2s.from_encoder_decoder_configs(SIZES, SIZES, decoder_start_token_id=1, **TIES[request.param])


def _ways(model):
    """Logits of `params`, by each way of calling the model."""
    inside = lambda params: {"params": {"pair": params, "Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}}
    return {
        "apply": lambda params: model.apply({"params": params}, IDS, decoder_input_ids=IDS).logits,
        "bind": lambda params: model.bind({"params": params})(IDS, decoder_input_ids=IDS).logits,
        "submodule": lambda params: Classifier(model).apply(inside(params), IDS)[0],
    }


def test_a_tied_parameter_has_the_gradient_of_all_its_uses(pair):
    """Through each way: that of the full tree's copies, added up."""
    model = pair.model
    assert model.aliases
    full = ties.fill(pair.params, model.aliases)  # copies that are there are read where they stand
    loss = lambda way: lambda params: jnp.sum(jnp.sin(_ways(model)[way](params)))
    expected = flatten_dict(jax.jit(jax.grad(loss("apply")))(full), sep="/")
    for alias in model.aliases[::-1]:  # what follows from a source first
        for path in [p for p in expected if p.startswith(alias.target)]:
            source = alias.source + path[len(alias.target) :]
            if source in expected:
                expected[source] = expected[source] + expected.pop(path)
    grads = jax.jit(lambda params: {way: jax.grad(loss(way))(params) for way in ("apply", "bind", "submodule")})
    for way, found in grads(pair.params).items():
        found = flatten_dict(found, sep="/")
        assert found.keys() == expected.keys(), way
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=f"{way}: {name}")


def test_init_makes_a_tree_without_copies(pair):
    model = pair.model
    stored = flatten_dict(pair.params, sep="/").keys()
    shape = jax.ShapeDtypeStruct(IDS.shape, jnp.int32)
    key = jax.random.key(0)
    trees = {
        "init": jax.eval_shape(lambda: model.init(key, IDS, decoder_input_ids=IDS)),
        "init_with_output": jax.eval_shape(lambda: model.init_with_output(key, IDS, decoder_input_ids=IDS))[1],
        "lazy_init": jax.eval_shape(lambda: model.lazy_init(key, shape, decoder_input_ids=shape)),
        "token_losses": jax.eval_shape(lambda: model.init(key, input_ids=IDS, labels=IDS, method="token_losses")),
    }
    trees = {way: tree["params"] for way, tree in trees.items()}
    trees["submodule"] = jax.eval_shape(lambda: Classifier(model).init(key, IDS))["params"]["pair"]
    for way, tree in trees.items():
        assert flatten_dict(nn.unbox(tree), sep="/").keys() == stored, way


def test_init_with_output_gives_the_output_of_its_parameters(pair):
    def both():
        out, variables = pair.model.init_with_output(jax.random.key(0), IDS, decoder_input_ids=IDS)
        return out.logits, pair.model.apply(variables, IDS, decoder_input_ids=IDS).logits

    made, again = jax.jit(both)()
    np.testing.assert_allclose(made, again, rtol=1e-5, atol=1e-6)


def test_tabulate_lists_what_is_stored(pair):
    table = nn.tabulate(pair.model, jax.random.key(0), depth=1, console_kwargs={"width": 200})(
        IDS, decoder_input_ids=IDS
    )
    assert "EncoderDecoder" in table and "encoder" in table
    stored = sum(leaf.size for leaf in jax.tree.leaves(pair.params))
    assert f"{stored:,}" in table
