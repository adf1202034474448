"""Properties of the pair that need no torch: packing, causality, remat, dropout, the cache, out-of-range ids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from seq2seq_jax.config import EncoderDecoderConfig
from seq2seq_jax.decoding.generate import decoding_params
from seq2seq_jax.families.registry import from_hf
from seq2seq_jax.models import cpu, layers
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.layers import Dropout
from seq2seq_jax.models.targets import shift_tokens_right
from seq2seq_jax.pretrained.pair import from_encoder_decoder_configs, quantize
from seq2seq_jax.pretrained.resize import resize_token_embeddings
from seq2seq_jax.pretrained.saving import save_orbax, save_pretrained

BERT = {
    "model_type": "bert",
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 29, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3}
SOURCE, TARGET = np.arange(3, 8), np.arange(10, 16)
TOKENS = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}


def make(encoder, decoder):
    made = from_encoder_decoder_configs(encoder, decoder, **TOKENS)
    rng = np.random.default_rng(7)
    noise = lambda x: jnp.asarray(x + 0.3 * rng.standard_normal(x.shape), x.dtype)
    return made.replace(params=jax.tree.map(noise, made.params))


@pytest.fixture(scope="module", params=["bert-gpt2", "gpt2-bert"])
def pair(request):
    return make(BERT, GPT2) if request.param == "bert-gpt2" else make(GPT2, BERT)


@pytest.fixture(scope="module")
def one():
    """One pairing, where another would show nothing more."""
    return make(BERT, GPT2)


@pytest.fixture(scope="module")
def apply(pair):
    """The jitted forward pass; logits of (input_ids, **others)."""
    return jax.jit(lambda **batch: pair.model.apply({"params": pair.params}, **batch))


def ids(seed, rows, length):
    return np.random.default_rng(seed).integers(3, 29, (rows, length)).astype(np.int32)


def test_packed_equals_unpacked(apply):
    a, b = ids(0, 1, 4), ids(1, 1, 5)
    s, t = ids(2, 1, 3), ids(3, 1, 4)
    one = apply(input_ids=a, decoder_input_ids=s)
    two = apply(input_ids=b, decoder_input_ids=t)
    packed = apply(
        input_ids=np.concatenate([a, b], 1),
        decoder_input_ids=np.concatenate([s, t], 1),
        encoder_pack_ids=np.array([[1] * 4 + [2] * 5]),
        decoder_pack_ids=np.array([[1] * 3 + [2] * 4]),
    )
    np.testing.assert_allclose(packed.logits[:, :3], one.logits, atol=1e-5)
    np.testing.assert_allclose(packed.logits[:, 3:], two.logits, atol=1e-5)


def test_padding_changes_nothing(apply):
    a, s = ids(0, 2, 5), ids(1, 2, 4)
    plain = apply(input_ids=a, decoder_input_ids=s).logits
    padded = np.concatenate([a, ids(5, 2, 3)], 1)
    mask = np.array([[1] * 5 + [0] * 3] * 2)
    np.testing.assert_allclose(
        apply(input_ids=padded, attention_mask=mask, decoder_input_ids=s).logits, plain, atol=1e-5
    )


def test_decoder_is_causal_and_reads_the_source(one):
    def logits(source_noise, target_noise):
        # Noise on the rows of single ids, and every position of either side has an id of its own.
        flat = flatten_dict(one.params, sep="/")
        for role, ids, noise in (("encoder", SOURCE, source_noise), ("decoder", TARGET, target_noise)):
            table = f"{role}/embeddings/token/embedding"
            flat[table] = flat[table].at[ids].add(noise * np.linspace(-1, 1, flat[table].shape[1]))
        params = unflatten_dict(flat, sep="/")
        out = one.model.apply({"params": params}, SOURCE[None], decoder_input_ids=TARGET[None])
        # The head is tied to the table: the effect of the states shows in rows that carry no noise.
        return out.logits[0, :, :3].sum(-1)

    zero = jnp.zeros((5, 1)), jnp.zeros((6, 1))
    source, target = jax.jacobian(logits, argnums=(0, 1))(*zero)
    target = np.abs(np.asarray(target)[:, :, 0])
    assert (np.triu(target, 1) == 0).all(), "a position sees what comes after it"
    assert (np.diag(target) > 0).all()
    assert (np.abs(np.asarray(source)[:, :, 0]) > 0).all(), "a target position does not see the source"


def remat_grads(pair, policy):
    """The traced gradient of a loss with dropout under a policy."""
    batch = {"input_ids": ids(0, 2, 5), "labels": ids(1, 2, 4), "train": True, "rngs": {"dropout": jax.random.key(0)}}
    model = pair.model.clone(remat=policy)
    return jax.jit(jax.grad(lambda p: model.apply({"params": p}, **batch).loss)).trace(pair.params)


@pytest.fixture(scope="module")
def plain_grads(one):
    return flatten_dict(remat_grads(one, "none").lower().compile()(one.params), sep="/")


SLOWER = ("elementwise", "dots", "dots_with_no_batch_dims", "offload_dots", "save_attention_out", "save_mlp")


@pytest.mark.parametrize("policy", ["full", *(pytest.param(p, marks=pytest.mark.slow) for p in SLOWER)])
def test_remat_changes_no_gradient(one, plain_grads, policy):
    for path, g in flatten_dict(remat_grads(one, policy).lower().compile()(one.params), sep="/").items():
        np.testing.assert_allclose(g, plain_grads[path], atol=1e-5 * float(np.abs(g).max()) + 1e-7, err_msg=path)


def test_remat_recomputes_what_its_policy_says(one):
    """By the number of products in the gradient."""
    count = lambda policy: str(remat_grads(one, policy).jaxpr).count("dot_general[")
    plain, full = count("none"), count("full")
    assert plain == count("dots") == count("elementwise")
    for policy in ("dots_with_no_batch_dims", "save_attention_out", "save_mlp"):
        assert plain < count(policy) < full, policy


def test_unknown_remat_names_the_nearest(one):
    with pytest.raises(ValueError, match="remat policy 'dot' is unknown: did you mean 'dots'"):
        one.model.clone(remat="dot").apply({"params": one.params}, ids(0, 1, 3), labels=ids(1, 1, 3))


def test_dropout_acts_in_training_only(one):
    batch = {"input_ids": ids(0, 2, 5), "labels": ids(1, 2, 4)}

    @functools.partial(jax.jit, static_argnames="train")
    def run(key, train):
        return one.model.apply({"params": one.params}, **batch, train=train, rngs={"dropout": jax.random.key(key)}).loss

    assert float(run(0, train=True)) == float(run(0, train=True)) != float(run(1, train=True))
    assert float(run(0, train=False)) == float(run(1, train=False)) != float(run(0, train=True))


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((3, 101, 400))  # an odd length: half of a word is left over
    apply = lambda key: np.asarray(
        Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(key)})
    )
    y = apply(0)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    np.testing.assert_allclose((y == 0).mean((0, 2)), 0.3, atol=5 * (0.21 / 1200) ** 0.5)
    assert 0.4 < (y == apply(1)).mean() < 0.7
    # The halves of a word have nothing to do with each other.
    first, second = (y[:, :50] == 0), (y[:, 51:] == 0)
    assert abs((first & second).mean() - 0.09) < 5 * (0.09 * 0.91 / first.size) ** 0.5
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, deterministic=True), x)


def test_shown_layers(one):
    out = one.model.apply(
        {"params": one.params},
        ids(0, 2, 5),
        decoder_input_ids=ids(1, 2, 4),
        output_attentions=True,
        output_hidden_states=True,
    )
    encoder, decoder = one.config.encoder, one.config.decoder
    assert [h.shape for h in out.encoder_hidden_states] == [(2, 5, encoder.hidden_size)] * (encoder.num_layers + 1)
    assert [w.shape for w in out.decoder_attentions] == [(2, decoder.num_heads, 4, 4)] * decoder.num_layers
    assert [w.shape for w in out.cross_attentions] == [(2, decoder.num_heads, 4, 5)] * decoder.num_layers
    np.testing.assert_allclose(np.sum(out.cross_attentions[0], -1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out.encoder_hidden_states[-1], out.encoder_last_hidden_state)


@pytest.mark.parametrize("tile, axes", [(3, 5), (4, 4)], ids=["source in tiles", "source whole"])
def test_cached_equals_uncached_and_beams_keep_apart(pair, apply, monkeypatch, tile, axes):
    """Beams of one row decode different tokens in one cache, swap places half-way, and stay what they were."""
    monkeypatch.setattr(cpu, "KEY_TILE", tile)
    model, params = pair.model.for_decoding(), pair.model.decoding_params(pair.params)
    source, mask = ids(0, 2, 6), np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    tokens = np.stack([ids(i, 2, 6) for i in range(3)], axis=1)  # [batch, beams, length]
    tokens[:, :, 0] = 1
    variables = {"params": params}
    states = model.apply(variables, source, mask, method="encode")
    cache = model.apply(variables, states, mask, 3, 8, method="init_cache")
    assert {cross[0].ndim for cross in cache.cross if cross is not None} == {axes}
    step = jax.jit(lambda t, c: model.apply(variables, t, c, method="decode_step"))
    logits, cache = step(tokens[:, :1, :1], cache)
    cache = cache.after_prompt()
    parents = np.array([[2, 0, 1], [1, 1, 0]])
    slots = np.tile(np.arange(3), (2, 1))
    for t in range(1, 6):
        if t == 4:
            cache, slots = cache.select(jnp.asarray(parents)), parents
        now = np.take_along_axis(tokens[:, :, t], slots, axis=1)
        logits, cache = step(now[:, :, None], cache)
    for row in range(2):
        for beam in range(3):
            whole = tokens[row, slots[row, beam]][None]
            full = apply(input_ids=source[row : row + 1], attention_mask=mask[row : row + 1],
                         decoder_input_ids=whole).logits[0, -1]  # fmt: skip
            np.testing.assert_allclose(logits[row, beam, : full.shape[0]], full, atol=1e-5 * float(np.abs(full).max()))


def test_decoding_form_is_the_pair(one):
    """The same numbers, and no second copy of the parameters."""
    form = one.for_decoding()
    assert form.for_decoding() is form and decoding_params(form.model, form.params) is form.params
    source, target = ids(0, 2, 5), ids(1, 2, 4)
    shown = {"input_ids": source, "decoder_input_ids": target, "output_attentions": True, "output_hidden_states": True}
    expected = one.model.apply({"params": one.params}, **shown)
    found = form.model.apply({"params": form.params}, **shown)
    for asked, given in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(given, asked, rtol=1e-4, atol=1e-5)
    settings = {"num_beams": 2, "max_length": 6, "output_scores": True}
    np.testing.assert_array_equal(
        form.generate(source, **settings).sequences, one.generate(source, **settings).sequences
    )


def test_decoding_form_is_not_stored(one, tmp_path):
    form = one.for_decoding()
    with pytest.raises(ValueError, match="is in decoding form, which is not written; take the pair it was made of"):
        save_pretrained(tmp_path / "torch", form)
    with pytest.raises(ValueError, match="is in decoding form, which is not written"):
        save_orbax(tmp_path / "orbax", form)
    with pytest.raises(ValueError, match="is in decoding form, which has tables of one size"):
        resize_token_embeddings(form, 40, side="source")
    with pytest.raises(ValueError, match="is in decoding form, which has the kernels that it has"):
        quantize(form)


def test_few_tokens_are_the_heads_right_operand(one, monkeypatch):
    """The same logits, in another order of the product."""
    states = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 12)), jnp.float32)

    def lowered():
        return jax.jit(lambda x: one.model.apply({"params": one.params}, x, method="logits")).lower(states)

    few = lowered()
    monkeypatch.setattr(layers, "FEW_TOKENS", 5)
    many = lowered()
    assert "transpose" in few.as_text() and "transpose" not in many.as_text()
    np.testing.assert_allclose(few.compile()(states), many.compile()(states), rtol=1e-5, atol=1e-5)


def test_id_outside_the_vocabulary(pair, apply):
    bad = np.array([[3, 99]])
    with pytest.raises(ValueError, match=r"input_ids holds the id 99, outside the vocabulary of"):
        pair.model.apply({"params": pair.params}, bad, decoder_input_ids=bad % 20)
    with pytest.raises(ValueError, match="labels holds the id -5"):
        pair.model.apply({"params": pair.params}, bad % 20, labels=np.array([[3, -5]]))
    # Under jit the ids are unknown when the check could act: the result is NaN, never another token's row.
    assert np.isnan(apply(input_ids=bad, decoder_input_ids=bad % 20).logits).all()


def test_too_long_and_nothing_to_decode(one):
    with pytest.raises(ValueError, match="a sequence of 17 tokens is longer than the 16 positions"):
        one.model.apply({"params": one.params}, ids(0, 1, 17), decoder_input_ids=ids(1, 1, 3))
    with pytest.raises(ValueError, match="give decoder_input_ids, or labels"):
        one.model.apply({"params": one.params}, ids(0, 1, 5))
    with pytest.raises(ValueError, match="needs both encoder_pack_ids and decoder_pack_ids"):
        pack = np.ones((1, 5), np.int32)
        one.model.apply({"params": one.params}, ids(0, 1, 5), labels=ids(1, 1, 3), encoder_pack_ids=pack)


def test_token_types_where_there_are_none():
    pair = from_encoder_decoder_configs(GPT2, GPT2, **TOKENS)
    with pytest.raises(ValueError, match="this gpt2 has no token types"):
        source = ids(0, 1, 4)
        pair.model.apply({"params": pair.params}, source, token_type_ids=source * 0, decoder_input_ids=source)


def test_shift_tokens_right():
    labels = np.array([[5, 6, -100, -100], [7, -100, 8, 9]])
    np.testing.assert_array_equal(shift_tokens_right(labels, 0, 1), [[1, 5, 6, 0], [1, 7, 0, 8]])
    with pytest.raises(ValueError, match=r"decoder_start_token_id is not known.*give decoder_start_token_id="):
        shift_tokens_right(labels, 0, None)
    with pytest.raises(ValueError, match="pad_token_id is not known"):
        shift_tokens_right(labels, None, 1)


def test_init_gives_the_once_stored_tree():
    config = EncoderDecoderConfig(from_hf(BERT, "encoder"), from_hf(BERT, "decoder"), 1, 0, (2,), True)
    model = EncoderDecoder(config)
    params = model.init(jax.random.key(0), ids(0, 1, 3), decoder_input_ids=ids(1, 1, 3))["params"]
    assert set(params["decoder"]) == {"layers", "head"}
    assert set(params["decoder"]["layers"]["stacked"]["block_0"]) == {"cross_attention", "cross_attention_norm"}
    out = model.apply({"params": params}, ids(0, 1, 3), labels=ids(1, 1, 3))
    assert np.isfinite(out.loss)
