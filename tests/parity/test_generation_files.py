"""generation_config.json as people have it: loads where torch loads it, generates what torch generates from it."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from seq2seq_jax.config import GenerationConfig, generation_from_hf  # noqa: E402
from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
BATCH = ladder.random_batch((37, 39))
# What is read otherwise or left out, and what the report says of it.
ODD = {
    "temperature 0": ({"temperature": 0.0}, "temperature 0.0 is left out: do_sample is off"),
    "sampling values": ({"top_k": -1, "min_p": 2.0, "typical_p": 0, "top_h": 0}, "top_h 0 is left out"),
    "top_p 0": ({"top_p": 0}, "top_p 0 is read as 1e-07"),
    "floats": ({"max_length": 12.0, "num_beams": 1.0, "eos_token_id": [2.0]}, "max_length 12.0 is read as 12"),
    "texts": ({"do_sample": "false", "remove_invalid_values": "True"}, "do_sample 'false' is read as False"),
    "nulls": (dict.fromkeys(("top_k", "num_beams", "early_stopping", "length_penalty", "do_sample")), None),
    "one beam": ({"num_beam_groups": 2, "early_stopping": True, "length_penalty": 2.0}, "there is one beam"),
    "contrastive beams": ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, "penalty_alpha 0.6 is left out"),
    "negative": ({"min_length": -1, "no_repeat_ngram_size": -2, "epsilon_cutoff": 3}, "it has no effect in torch"),
    "negative ids": ({"suppress_tokens": [-1, 7], "forced_eos_token_id": None}, "[-1, 7] is read as [7]"),
    "no end": ({"eos_token_id": -1, "pad_token_id": 0}, "eos_token_id -1 is read as []"),
    "least above greatest": ({"min_length": 30}, "min_length 30 is read as 12, since max_length is 12"),
    "unknown": ({"prefix": "summarize: ", "use_cache": True, "x": [1]}, "prefix 'summarize: ' is unknown"),
}
# What torch refuses at generate, and the word for it here.
REFUSED = {
    "temperature": ({"temperature": 0.0, "do_sample": True}, "temperature is 0.0; give a number above 0"),
    "top_k": ({"top_k": -1, "do_sample": True}, "top_k is -1; give a whole number from 0 up"),
    "penalty": ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
    "greatest length": ({"max_length": 0}, "max_length is 0"),
    "groups": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.0}, "num_beam_groups is 2 and diversity"),
    "groups that do not divide": ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "a multiple"),
    "words": ({"bad_words_ids": [[-5]]}, "bad_words_ids is"),
}
# What torch does not load.
UNLOADED = {
    "outputs of greedy search": ({"num_return_sequences": 3}, "num_return_sequences 3 is above num_beams 1"),
    "outputs of beams": ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences 3 is above num_beams 2"),
    "new tokens": ({"max_new_tokens": 0}, "max_new_tokens is 0, not above 0"),
    "stopping": ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    "forced and suppressed": (
        {"forced_eos_token_id": 2, "suppress_tokens": [2]},
        "suppress_tokens holds all of forced",
    ),
}


QUICK = ("temperature 0", "floats", "nulls", "texts", "unknown")


def quick(cases):
    """Parameters of a test; those beyond `QUICK` are slow."""
    marks = {name: () if name in QUICK else pytest.mark.slow for name in cases}
    return [pytest.param(case, case[1], id=name, marks=marks[name]) for name, case in cases.items()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    torch_models.pair("bert", "bert", encoder_changes={"num_hidden_layers": 1}, seed=4).save_pretrained(directory)
    content = json.loads((directory / "generation_config.json").read_text())
    return directory, {**content, "max_length": 12}


@pytest.fixture
def file(base, request):
    """The directory with a generation_config.json of the test's fields."""
    fields = getattr(request, "param", ({},))[0]
    (base[0] / "generation_config.json").write_text(json.dumps({**base[1], **fields}))
    return base[0]


def torch_generates(directory, **settings):
    model = transformers.EncoderDecoderModel.from_pretrained(directory).eval()
    mask = torch.tensor(BATCH["attention_mask"])
    with torch.no_grad():
        return model.generate(torch.tensor(BATCH["input_ids"]), attention_mask=mask, **settings).numpy()


@pytest.mark.parametrize(("file", "said"), quick(ODD), indirect=["file"])
def test_odd_values(file, said, tmp_path):
    pair = from_pretrained(file)
    assert (said is None and not pair.report.notes) or any(said in n for n in pair.report.notes), pair.report.notes
    settings = pair.generation_config
    # torch takes any text for true, and lets ids of -1 suppress the last token.
    alike = said != ODD["texts"][1] and not settings.suppress_tokens and settings.max_length == 12
    theirs = torch_generates(file) if alike else None
    ours = np.asarray(pair.generate(BATCH["input_ids"], BATCH["attention_mask"]).sequences)
    if theirs is not None:
        expected = ladder.until_end(theirs, pair.config.eos_token_ids, pair.config.pad_token_id)
        np.testing.assert_array_equal(ours, expected)
    save_pretrained(tmp_path, pair)
    before, after = (json.loads((d / "generation_config.json").read_text()) for d in (file, tmp_path))
    assert after == before, "the source's fields are kept"


@pytest.mark.parametrize(("file", "said"), [(case, case[1]) for case in REFUSED.values()], ids=REFUSED,
                         indirect=["file"])  # fmt: skip
def test_refused_at_generate(file, said):
    pair = from_pretrained(file)
    assert any("generate() will refuse: " in note and said in note for note in pair.report.notes), pair.report.notes
    with pytest.raises(ValueError, match=said) as error:
        pair.generate(BATCH["input_ids"])
    assert "\n" not in str(error.value)
    with pytest.raises(Exception):  # noqa: B017
        torch_generates(file)
    if "temperature" in said:
        assert pair.generation_config.replace(temperature=0.5).temperature == 0.5


@pytest.mark.parametrize(("file", "said"), [(case, case[1]) for case in UNLOADED.values()], ids=UNLOADED,
                         indirect=["file"])  # fmt: skip
def test_refused_at_load(file, said):
    """As in torch; the remedy is another generation_config."""
    with pytest.raises(ValueError, match=r"must be|not support|has to be|is also in"):
        transformers.EncoderDecoderModel.from_pretrained(file)
    with pytest.raises(ValueError, match=f"generation_config.json: {said}.*give generation_config=") as error:
        from_pretrained(file)
    assert "\n" not in str(error.value)
    assert from_pretrained(file, generation_config={"num_beams": 2}).generation_config.num_beams == 2


def test_generation_config_given(file, tmp_path):
    """Ours, a mapping and torch's take the file's place, but for token ids that they leave out."""
    fields = {"num_beams": 3, "length_penalty": 0.5}
    for given in (GenerationConfig(**fields), fields, transformers.GenerationConfig(**fields)):
        pair = from_pretrained(file, generation_config=given)
        settings = pair.generation_config
        assert (settings.num_beams, settings.length_penalty, settings.max_length) == (3, 0.5, None)
        plain = from_pretrained(file)
        assert settings.eos_token_id == plain.generation_config.eos_token_id is not None
        assert pair.config == plain.config
        save_pretrained(tmp_path, pair)
        written = json.loads((tmp_path / "generation_config.json").read_text())
        assert written["num_beams"] == 3 and "max_length" not in written
    odd = from_pretrained(file, generation_config={"temperature": 0, "num_beams": 2.0})
    assert odd.generation_config.num_beams == 2 and len(odd.report.notes) == 2
    with pytest.raises(ValueError, match="temperature is 0; give a number above 0"):
        GenerationConfig(temperature=0)


def test_old_config_json(file):
    """Before there was a file for them, config.json and its decoder section held dozens of such fields."""
    config = json.loads((file / "config.json").read_text())
    old = {"temperature": 0, "top_p": 0.0, "num_return_sequences": 3, "num_beam_groups": 0, "min_length": 56.0,
           "max_length": 20, "early_stopping": None, "bad_words_ids": None, "do_sample": "no"}  # fmt: skip
    text = (file / "config.json").read_text()
    try:
        (file / "generation_config.json").unlink()
        (file / "config.json").write_text(
            json.dumps({**config, "max_length": 142.0, "decoder": {**config["decoder"], **old}})
        )
        pair = from_pretrained(file)
    finally:
        (file / "config.json").write_text(text)
    settings = pair.generation_config
    assert (settings.max_length, settings.min_length, settings.temperature) == (142, 56, 1.0)
    assert any("generate() will refuse: do_sample is 'no'" in note for note in pair.report.notes)


def test_a_file_is_read_like_torch_does():
    """Fields that no strategy is in the way of are those of torch's class."""
    content = {"top_k": 7, "temperature": 0.5, "do_sample": True, "num_beams": 2, "stop_strings": "x"}
    theirs = transformers.GenerationConfig(**content)
    assert generation_from_hf(theirs.to_dict()) == generation_from_hf(content) == GenerationConfig(**content)
