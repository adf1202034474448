"""How missing weights begin, and what is tied with what."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seq2seq_jax.config import Alias
from seq2seq_jax.models.param_layouts import inputs_first, scan_plan
from seq2seq_jax.pretrained.pair import (
    from_encoder_decoder_configs,
    from_encoder_decoder_pretrained,
    from_pretrained,
)
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.weights.initialization import align
from tests.weights.checkpoints import BERT, GPT2, TOKENS, equal, make_pair, noisy, standalone, tensors, write

IDS, OTHER = np.array([[3, 4, 5, 6]]), np.array([[9, 8, 7, 6]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return standalone(tmp_path_factory.mktemp("bert"), make_pair(BERT, BERT), "encoder", BERT, prefix="bert.")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    without = ("crossattention", "ln_cross_attn")
    return standalone(
        tmp_path_factory.mktemp("gpt2"), make_pair(BERT, GPT2), "decoder", GPT2, prefix="", without=without
    )


def block(pair):
    """Parameters of the decoder's layers."""
    return pair.params["decoder"]["layers"]["stacked"]["block_0"]


def test_self_attention_start(bert, gpt2):
    for decoder in (bert, gpt2):
        made = from_encoder_decoder_pretrained(bert, decoder, **TOKENS, cross_attention_init="self_attention")
        layers = block(made)
        equal(layers["cross_attention"], layers["self_attention"])
        equal(layers["cross_attention_norm"], layers["self_attention_norm"])


def test_identity_start(bert):
    made = from_encoder_decoder_pretrained(bert, bert, **TOKENS, cross_attention_init="identity", head_init="identity")
    layers, cross = block(made), block(made)["cross_attention"]
    for name in ("query", "key"):
        equal(cross[name], layers["self_attention"][name])
    equal(layers["cross_attention_norm"], layers["self_attention_norm"])
    # Uniform attention over one source token: its state arrives as itself.
    state = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    for layer in range(3):
        heads = np.einsum("e,ehd->hd", state, cross["value"]["kernel"][layer]) + cross["value"]["bias"][layer]
        arrived = np.einsum("hd,hde->e", heads, cross["out"]["kernel"][layer]) + cross["out"]["bias"][layer]
        np.testing.assert_array_equal(arrived, state)
    np.testing.assert_array_equal(made.params["decoder"]["head"]["transform"]["kernel"], np.eye(12))


def test_zero_start_is_the_pretrained_decoder(bert, gpt2):
    made = from_encoder_decoder_pretrained(bert, gpt2, **TOKENS, cross_attention_init="zero")
    run = jax.jit(lambda i: made.model.apply({"params": made.params}, i, decoder_input_ids=IDS).logits)
    np.testing.assert_array_equal(run(IDS), run(OTHER))
    plain = from_encoder_decoder_pretrained(bert, gpt2, **TOKENS)
    run = jax.jit(lambda i: plain.model.apply({"params": plain.params}, i, decoder_input_ids=IDS).logits)
    assert (np.asarray(run(IDS)) != np.asarray(run(OTHER))).any()
    with pytest.raises(ValueError, match=r"promises to begin as the pretrained decoder.*use 'identity'"):
        from_encoder_decoder_pretrained(bert, bert, **TOKENS, cross_attention_init="zero")


def test_random_starts_follow_the_seed(bert):
    a, b, c = (from_encoder_decoder_pretrained(bert, bert, **TOKENS, seed=seed) for seed in (0, 0, 1))
    equal(a.params, b.params)
    kernels = [np.asarray(block(p)["cross_attention"]["query"]["kernel"]) for p in (a, c)]
    assert (kernels[0] != kernels[1]).all() and (kernels[0][0] != kernels[0][1]).any()
    assert 0.017 < kernels[0].std() < 0.023, "torch's initializer_range is 0.02"
    assert (np.asarray(block(a)["cross_attention"]["query"]["bias"]) == 0).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cross_attention_init": "zeros"}, "'zeros' is unknown: did you mean 'zero'"),
        ({"head_init": "eye"}, "head_init 'eye' is unknown"),
        ({"tie_encoder_decoder": "all"}, "give False, True, 'embeddings' or aliases"),
        ({"decoder_hiden_size": 3}, "decoder_hiden_size is no field.*did you mean 'hidden_size'"),
        ({"depth": 3}, "argument 'depth' is unknown"),
        ({"encoder_keep_layers": (0, 7)}, r"encoder_keep_layers is \(0, 7\), and the checkpoint has layers 0 to 2"),
        ({"encoder_keep_layers": (0,), "encoder_num_hidden_layers": 1}, "are both given; give one"),
        ({"decoder_num_hidden_layers": 9}, "is 9, and the checkpoint has 3 layers"),
    ],
)
def test_unusable_options(bert, option, message):
    with pytest.raises(ValueError, match=message):
        from_encoder_decoder_pretrained(bert, bert, **TOKENS, **option)


TIES = {
    "all": True,
    "embeddings": "embeddings",
    "aliases": (Alias("encoder/layers/stacked/block_0/mlp", "decoder/layers/stacked/block_0/mlp"),),
}


@pytest.mark.parametrize(
    "tie", [pytest.param(t, id=name, marks=() if name == "all" else pytest.mark.slow) for name, t in TIES.items()]
)
def test_ties(tie, tmp_path):
    pair = noisy(from_encoder_decoder_configs(BERT, BERT, **TOKENS, tie_encoder_decoder=tie))
    free = from_encoder_decoder_configs(BERT, BERT, **TOKENS)
    count = lambda p: sum(x.size for x in jax.tree.leaves(p.params))
    assert count(pair) < count(free)
    # A free pair with the same values: equal loss, and its gradients add up to the tied ones.
    save_pretrained(tmp_path / "tied", pair)
    content = tensors(tmp_path / "tied")
    np.testing.assert_array_equal(
        content["encoder.encoder.layer.1.intermediate.dense.weight"],
        content["decoder.bert.encoder.layer.1.intermediate.dense.weight"],
    ) if tie != "embeddings" else None
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    for key in ("tie_encoder_decoder", "seq2seq_jax"):
        config.pop(key, None)
    free = from_pretrained(write(tmp_path / "free", content, config))
    grads = {}
    for name, p in (("tied", pair), ("free", free)):
        loss, g = jax.jit(jax.value_and_grad(lambda q, p=p: p.model.apply({"params": q}, IDS, labels=OTHER).loss))(
            p.params
        )
        grads[name] = (float(loss), flatten_dict(g, sep="/"))
    assert np.isclose(grads["tied"][0], grads["free"][0], rtol=1e-6)
    added = 0
    for path, g in grads["tied"][1].items():
        twin = "decoder/" + path.removeprefix("encoder/")
        both = grads["free"][1][path]
        if path.startswith("encoder/") and twin in grads["free"][1] and twin not in grads["tied"][1]:
            both, added = both + grads["free"][1][twin], added + 1
        np.testing.assert_allclose(g, both, atol=2e-5 * float(np.abs(both).max()) + 1e-7, err_msg=path)
    assert added
    if not isinstance(tie, tuple):
        again = from_pretrained(tmp_path / "tied")
        assert again.config.tie_encoder_decoder == tie
        equal(again.params, pair.params)
        assert again.report.of("tied")


@pytest.mark.parametrize("kept", ["encoder", "decoder"])
def test_file_with_one_copy(kept, tmp_path):
    """safetensors drop shared tensors, and either side's name may be the one that is left (transformers#27231)."""
    pair = noisy(from_encoder_decoder_configs(BERT, BERT, **TOKENS, tie_encoder_decoder=True))
    save_pretrained(tmp_path / "both", pair)
    content = tensors(tmp_path / "both")
    for name in list(content):
        twin = "decoder.bert." + name.removeprefix("encoder.")
        if name.startswith("encoder.") and twin in content:
            del content[twin if kept == "encoder" else name]
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["tie_encoder_decoder"] is True
    equal(from_pretrained(write(tmp_path / "one", content, config)).params, pair.params)


def test_unequal_copies_are_noted(tmp_path):
    pair = noisy(from_encoder_decoder_configs(BERT, BERT, **TOKENS, tie_encoder_decoder=True))
    save_pretrained(tmp_path, pair)
    content = tensors(tmp_path)
    content["decoder.bert.embeddings.word_embeddings.weight"] += 1
    config = json.loads((tmp_path / "config.json").read_text())
    again = from_pretrained(write(tmp_path / "changed", content, config))
    equal(again.params, pair.params)
    assert any("are tied but differ" in note for note in again.report.notes)


def test_ties_that_do_not_fit():
    with pytest.raises(
        ValueError, match="num_layers is 3 in the encoder and 2 in the decoder; make them equal, or tie"
    ):
        from_encoder_decoder_configs(BERT, {**BERT, "num_hidden_layers": 2}, tie_encoder_decoder=True)
    tie = (Alias("encoder/layers/nowhere", "decoder/layers/nowhere"),)
    with pytest.raises(ValueError, match="a tie reads 'encoder/layers/nowhere', which is not among the parameters"):
        from_encoder_decoder_configs(BERT, BERT, tie_encoder_decoder=tie)


def test_alias_of_some_layers():
    tie = (Alias("encoder/layers/stacked/block_0/mlp", "decoder/layers/stacked/block_0/mlp", layers=(1, 3)),)
    pair = noisy(
        from_encoder_decoder_configs(BERT, {**BERT, "num_hidden_layers": 2}, **TOKENS, tie_encoder_decoder=tie)
    )
    full = pair.model.decoding_params(pair.params)
    decoder = inputs_first(full["decoder"]["layers"])
    for ours, theirs in ((0, 1), (1, 2)):
        equal(decoder[f"layers_{ours}"]["mlp"], full["encoder"]["layers"][f"layers_{theirs}"]["mlp"])
    equal(pair.model.training_params(full), pair.params)


def test_scan_plans():
    from seq2seq_jax.config import LayerSettings, TransformerConfig

    a, b, odd = (LayerSettings(attention_scale=s) for s in (1.0, 2.0, 3.0))
    plan = lambda *pattern: scan_plan(TransformerConfig("bert", 9, 8, len(pattern), 2, 8, layer_pattern=pattern))
    assert plan(a, a, a, a) == (0, 1, 4)
    assert plan(a, b, a, b, a, b) == (0, 2, 3)
    assert plan(odd, a, a, a) == (1, 1, 3)
    assert plan(odd, a, b, a, b, odd) == (1, 2, 2)
    assert plan(a).repeats == plan(a, b).repeats == 0
    long = TransformerConfig("bert", 9, 8, 7, 2, 8, layer_pattern=(a, b))
    assert scan_plan(long) == (0, 2, 3), "the seventh layer stands alone"


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def lettered(directory, config, words, seed):
    """A BERT without cross-attention or head whose tokenizer holds `words`."""
    config = {**config, "vocab_size": len(words), "num_hidden_layers": 2}
    without = ("crossattention", "cls.")
    path = standalone(
        directory, make_pair(config, config, seed=seed), "decoder", config, prefix="bert.", without=without
    )
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return path


@pytest.mark.parametrize("width", [pytest.param(12, marks=pytest.mark.slow), 8])
def test_aligned_start(tmp_path, width):
    """An encoder whose embeddings are a linear image of the decoder's: its states arrive as the decoder's own."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    other = [*special, "only", *reversed(words[5:])]
    decoder = lettered(tmp_path / "decoder", {**BERT, "hidden_size": 8, "num_attention_heads": 2}, words, 1)
    encoder = lettered(tmp_path / "encoder", {**BERT, "hidden_size": width, "num_attention_heads": 2}, other, 2)
    rng, name = np.random.default_rng(0), "bert.embeddings.word_embeddings.weight"
    there = tensors(encoder)
    kernel, bias = rng.standard_normal((width, 8)), rng.standard_normal(8)
    content = tensors(decoder)
    place = {word: i for i, word in enumerate(other)}
    content[name] = np.float32(there[name][[place[word] for word in words]] @ kernel + bias)
    write(decoder, content)
    made = from_encoder_decoder_pretrained(encoder, decoder, **TOKENS, cross_attention_init="aligned")
    assert "aligned by 52 strings" in str(made.report)
    cross, own = block(made)["cross_attention"], block(made)["self_attention"]
    states = rng.standard_normal((5, width))
    mapped, arrived = states @ kernel + bias, states
    if width != 8:
        projection = made.params["enc_to_dec_proj"]
        arrived = states @ projection["kernel"] + projection["bias"]
        np.testing.assert_allclose(arrived, mapped, atol=1e-4)
    project = lambda x, p, layer: np.einsum("se,ehd->shd", x, p["kernel"][layer]) + p["bias"][layer]
    for layer in range(2):
        keys = project(arrived, cross["key"], layer)
        np.testing.assert_allclose(keys, project(mapped, own["key"], layer), atol=1e-4)
        out = np.einsum("shd,hde->se", project(arrived, cross["value"], layer), cross["out"]["kernel"][layer])
        np.testing.assert_allclose(out + cross["out"]["bias"][layer], mapped, atol=1e-4)


def test_aligned_without_a_bias_is_fitted_so():
    rng = np.random.default_rng(0)
    tables, strings = rng.standard_normal((2, 30, 4)) + 1.0, {str(i): i for i in range(30)}
    found = align(*tables, strings, strings, intercept=False)
    np.testing.assert_array_equal(found.bias, 0)
    np.testing.assert_allclose(found.kernel, np.linalg.lstsq(*tables, rcond=None)[0], atol=1e-5)


def test_aligned_needs_strings_in_common(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    encoder = lettered(tmp_path / "encoder", BERT, words, 1)
    decoder = lettered(tmp_path / "decoder", BERT, [*words[:5], *(letter * 2 for letter in LETTERS)], 2)
    with pytest.raises(ValueError, match=r"fits a map of width 12 on the strings .* they hold only 0 in common"):
        from_encoder_decoder_pretrained(encoder, decoder, **TOKENS, cross_attention_init="aligned")
