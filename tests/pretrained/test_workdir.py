"""A run's workdir is a model wherever one is loaded."""

import json
import shutil

import numpy as np
import pytest

import seq2seq_jax as s2s
from seq2seq_jax.pretrained import orbax
from seq2seq_jax.pretrained.saving import save_without_params
from seq2seq_jax.weights.workdir import find_model, model_directory
from tests.weights.checkpoints import BERT, equal, make_pair, noisy


@pytest.fixture(scope="module")
def pairs():
    pair = make_pair(BERT, BERT)
    return {step: noisy(pair, seed=step) for step in (2, 4, 6)}


@pytest.fixture
def workdir(pairs, tmp_path):
    """A workdir as the training loop leaves it: steps 2 and 6 were evaluated; step 4 was not."""
    (tmp_path / "config.json").write_text(json.dumps({"evaluation": {"best": "loss"}, "data": {}}))
    save_without_params(tmp_path / "model", pairs[2])
    for step, loss in ((2, 1.0), (4, None), (6, 2.0)):
        orbax.save_params(tmp_path / "checkpoints" / str(step), pairs[step].config, pairs[step].params)
        if loss is not None:
            file = tmp_path / "checkpoints" / str(step) / "metrics" / "metrics"
            file.parent.mkdir()
            file.write_text(json.dumps({"loss": loss, "rouge1": loss, "broken": float("nan")}))
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
    return tmp_path


def choose(workdir, best):
    (workdir / "config.json").write_text(json.dumps({"evaluation": {"best": best}, "data": {}}))


def test_the_best_checkpoint_and_any_other(workdir, pairs):
    equal(s2s.from_pretrained(workdir).params, pairs[2].params)
    equal(s2s.from_pretrained(str(workdir), step=4).params, pairs[4].params)
    assert s2s.from_pretrained(workdir, step=6, param_dtype=np.float16).report.of("copied")
    with pytest.raises(FileNotFoundError, match="checkpoints has no step 3; it holds 2, 4, 6"):
        s2s.from_pretrained(workdir, step=3)
    with pytest.raises(FileNotFoundError, match="is no workdir of a run, so it has no step 2"):
        s2s.from_pretrained(workdir / "model", step=2)


@pytest.mark.parametrize(("best", "step"), [("loss", 2), ("rouge1", 6), ("broken", 6), ("missing", 6)])
def test_which_is_best(workdir, best, step):
    choose(workdir, best)
    assert find_model(workdir) == (workdir / "model", workdir / "checkpoints" / str(step))


def test_the_last_one_where_none_was_evaluated(workdir):
    for metrics in workdir.glob("checkpoints/*/metrics"):
        shutil.rmtree(metrics)
    assert find_model(workdir)[1].name == "6"
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; let the run reach its first one"):
        find_model(workdir)


def test_the_export_wins(workdir, pairs):
    assert model_directory(workdir) == workdir / "model"
    pairs[6].save_pretrained(workdir / "pretrained")
    assert model_directory(workdir) == workdir / "pretrained"
    equal(s2s.from_pretrained(workdir).params, pairs[6].params)
    equal(s2s.from_pretrained(workdir, step=2).params, pairs[2].params)


def test_a_model_with_a_folder_named_model_is_no_workdir(workdir, pairs, tmp_path):
    directory = tmp_path / "saved"
    pairs[2].save_pretrained(directory)
    (directory / "model").mkdir()
    assert find_model(directory) == (directory, None)
    assert find_model("owner/name") == ("owner/name", None) and model_directory("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type_vocab_size": 0}, "has the parameter 'encoder/embeddings/token_type/embedding', which"),
        ({"model_type": "roberta-prelayernorm"}, "lacks the parameter 'encoder/final_norm/"),
        ({"intermediate_size": 24}, r"has shape \[3, 20, 12\], and config.json asks for \[3, 24, 12\]"),
    ],
)
def test_parameters_of_another_config(workdir, change, message):
    """One line, whether the stored tree lacks parameters, has more, or has others."""
    file = workdir / "model" / "config.json"
    config = json.loads(file.read_text())
    config["encoder"].update(change)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        s2s.from_pretrained(workdir)
    assert "\n" not in str(error.value)
