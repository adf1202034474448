"""Tokens of every strategy that torch has, on random settings, against torch's generate.

Numbers are drawn, kinds are few: `pytest -m slow` runs 200 settings over all kinds, the default run a spread of them.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
BATCH = ladder.random_batch((37, 39))
EACH = 20


def number(low, high):
    return lambda rng: float(rng.uniform(low, high))


def whole(low, high):
    return lambda rng: int(rng.integers(low, high))


LENGTHS = {"max_length": whole(6, 20)}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": number(-1, 2), **LENGTHS}
# What is a function is drawn anew for each setting.
KINDS = {
    "greedy": {"repetition_penalty": number(0.6, 2), "min_length": whole(2, 6), **LENGTHS},
    "greedy, n-grams": {"no_repeat_ngram_size": 2, "encoder_repetition_penalty": number(0.6, 2), **LENGTHS},
    "greedy, bias": {
        "sequence_bias": lambda rng: [[[int(i)], float(b)] for i, b in zip(rng.integers(3, 39, 3), rng.normal(size=3))],
        "exponential_decay_length_penalty": lambda rng: (int(rng.integers(2, 6)), float(rng.uniform(1.1, 1.6))),
        **LENGTHS,
    },
    "greedy, suppressed": {
        "suppress_tokens": lambda rng: rng.integers(3, 39, 4).tolist(),
        "begin_suppress_tokens": lambda rng: rng.integers(3, 39, 4).tolist(),
        **LENGTHS,
    },
    "beam": {"repetition_penalty": number(0.6, 2), **BEAMS},
    "beam, early": {"early_stopping": True, "min_new_tokens": whole(1, 4), **BEAMS},
    "beam, never": {"early_stopping": "never", **BEAMS},
    "beam, several ends": {"eos_token_id": lambda rng: [2, *rng.integers(3, 39, 2).tolist()], **BEAMS},
    "beam, n-grams": {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, **BEAMS},
    "beam, bad words": {
        "bad_words_ids": lambda rng: [[int(rng.integers(3, 39))], rng.integers(3, 39, 2).tolist()],
        "renormalize_logits": True,
        **BEAMS,
    },
}
QUICK = ()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    model = torch_models.pair("bert", "bert", encoder_changes={"num_hidden_layers": 2}, seed=4)
    path = tmp_path_factory.mktemp("pair")
    model.save_pretrained(path)
    return model, from_pretrained(path)


def draw(kind, seed):
    rng = np.random.default_rng(seed)
    return {name: value(rng) if callable(value) else value for name, value in KINDS[kind].items()}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_tokens_are_torch_s(case, kind):
    model, pair = case
    ids, mask = BATCH["input_ids"], BATCH["attention_mask"]
    for seed in range(EACH):
        settings = draw(kind, seed)
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor(ids), attention_mask=torch.tensor(mask), return_dict_in_generate=True,
                output_scores=True, **settings,
            )  # fmt: skip
        ours = pair.generate(ids, mask, **settings)
        ends = settings.get("eos_token_id", [2])
        expected = ladder.until_end(theirs.sequences.numpy(), tuple(ends), 0)
        np.testing.assert_array_equal(np.asarray(ours.sequences), expected, err_msg=str(settings))
        if "num_beams" in settings:
            ladder.close(ours.sequences_scores, theirs.sequences_scores.numpy(), 1e-5, f"scores of {settings}")


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_and_logits_on_request(case, beams):
    model, pair = case
    ids, mask = BATCH["input_ids"], BATCH["attention_mask"]
    settings = {"num_beams": beams, "max_length": 9, "repetition_penalty": 1.3, "output_scores": True}
    settings["output_logits"] = True
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(ids), attention_mask=torch.tensor(mask), return_dict_in_generate=True, **settings
        )
    ours = pair.generate(ids, mask, **settings)
    assert len(ours.scores) == len(theirs.scores)
    for name in ("scores", "logits"):
        for mine, other in zip(np.asarray(getattr(ours, name)), getattr(theirs, name)):
            ladder.close(mine, other.numpy(), 1e-5, name)
