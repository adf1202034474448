"""What a pair shows and does beside generating."""

import json

import numpy as np
import pytest

import seq2seq_jax as s2s
from tests.weights.checkpoints import BERT, GPT2, equal, make_pair


@pytest.fixture(scope="module")
def pair():
    return make_pair(BERT, GPT2)


INPUTS = {"input_ids": np.array([[3, 4, 5], [6, 7, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}
LABELS = np.array([[3, 4, 2, -100], [5, 6, 7, 2]])


def test_repr_is_short(pair):
    text = repr(pair)
    assert len(text.splitlines()) == 6 and len(text) < 600
    for part in ("bert, 3 layers, hidden size 12", "gpt2, 2 layers", "9,792 parameters in float32", "initialised"):
        assert part in text
    half = pair.replace(model=pair.model.clone(dtype=np.float16))
    assert "computes in float16" in repr(half) and repr(half.for_decoding())


def test_loss_and_score(pair):
    out = pair.model.apply({"params": pair.params}, **INPUTS, labels=LABELS)
    loss, scores = pair.loss(**INPUTS, labels=LABELS), pair.score(**INPUTS, labels=LABELS)
    np.testing.assert_allclose(loss, out.loss, rtol=1e-5)
    assert loss.shape == () and scores.token_counts.tolist() == [3, 4]
    np.testing.assert_allclose(np.log(scores.perplexity), loss, rtol=1e-5)
    np.testing.assert_allclose(pair.for_decoding().loss(**INPUTS, labels=LABELS), loss, rtol=1e-5)
    assert np.isnan(pair.loss(**INPUTS, labels=np.full((2, 4), -100)))
    with pytest.raises(ValueError, match="labels holds the id 29, outside the vocabulary of 29"):
        pair.loss(**INPUTS, labels=np.full((2, 4), 29))


@pytest.mark.parity
def test_loss_as_torch(pair, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pair.save_pretrained(tmp_path)
    model = transformers.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = model(**{name: torch.tensor(array) for name, array in INPUTS.items()}, labels=torch.tensor(LABELS))
    np.testing.assert_allclose(pair.loss(**INPUTS, labels=LABELS), theirs.loss, rtol=1e-5)


class FakeHub:
    """What HfApi is asked for; `upload_folder` reads the folder, which is gone afterwards."""

    calls: tuple = ()

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        if repo_id == "owner/refused":
            raise OSError("401 Client Error\nmany lines")
        FakeHub.calls = (("create_repo", repo_id, private, exist_ok, self.token),)
        return type("RepoUrl", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        FakeHub.calls += (("upload_folder", repo_id, revision, commit_message),)
        FakeHub.pair = s2s.from_pretrained(folder_path)
        FakeHub.dtypes = set(FakeHub.pair.dtypes.values())


def test_push_to_hub(pair, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    where = pair.push_to_hub("mine", private=True, token="secret", commit_message="First", dtype=np.float16)
    assert where == "me/mine" and FakeHub.dtypes == {"float16"}
    assert FakeHub.calls == (
        ("create_repo", "mine", True, True, "secret"), ("upload_folder", "me/mine", None, "First"))  # fmt: skip
    s2s.push_to_hub("again", pair)
    equal(FakeHub.pair.params, pair.params)
    with pytest.raises(ValueError, match=r"the hub did not take 'owner/refused' \(401 Client Error\); check the id"):
        pair.push_to_hub("owner/refused")


def test_transformers_generation_config(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    pair.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 2, "eos_token_id": 5}))
    given = transformers.GenerationConfig(num_beams=4, length_penalty=0.5)
    loaded = s2s.from_pretrained(tmp_path, generation_config=given)
    assert (loaded.generation_config.num_beams, loaded.generation_config.length_penalty) == (4, 0.5)
    assert loaded.config.eos_token_ids == (5,)
