"""Configs that callers give: mappings, files and transformers' own; misspelt fields are refused."""

import json
import re
from pathlib import Path

import pytest

from seq2seq_jax.families import fields, registry
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs, from_encoder_decoder_pretrained
from seq2seq_jax.weights.hf_config import given_config
from tests.weights.checkpoints import BERT, GPT2, TOKENS, equal, make_pair, standalone


@pytest.mark.parametrize(
    ("config", "role", "message"),
    [
        ({**BERT, "num_hiden_layers": 2}, "encoder", "num_hiden_layers .* did you mean 'num_hidden_layers'"),
        ({**GPT2, "n_hed": 2}, "decoder", "n_hed is no field of a gpt2 config: did you mean 'n_head'"),
        ({**BERT, "cross_attention_every": 2}, "encoder", "cross_attention_every is no field"),
        (3, "decoder", "decoder_config is a int; give a config of transformers"),
        ({"vocab_size": 3}, "encoder", "encoder_config has no model_type"),
    ],
)
def test_refused(config, role, message):
    sides = {"encoder_config": BERT, "decoder_config": GPT2, f"{role}_config": config}
    with pytest.raises(ValueError, match=message):
        from_encoder_decoder_configs(**sides)


def test_fields_without_effect_and_files_pass(tmp_path):
    more = {"torch_dtype": "float32", "classifier_dropout": None, "num_beams": 3, "_name_or_path": "x"}
    pair = from_encoder_decoder_configs({**BERT, **more}, GPT2)
    assert pair.config.encoder.source["classifier_dropout"] is None
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**BERT, "field_of_its_own": 1}))
    for config in (str(file), from_encoder_decoder_configs(file, GPT2).config.encoder):
        assert from_encoder_decoder_configs(config, GPT2).config.encoder.source["field_of_its_own"] == 1


def test_all_that_families_read_can_be_given():
    """Every literal field that a family's file asks a config for is known for one of its model types."""
    for module in registry.MODULES:
        family, text = module.FAMILY, Path(module.__file__).read_text()
        asked = set(re.findall(r'\bhf(?:\.get\(|\[)"(\w+)"', text)) - {"model_type"}
        known = {
            field for t in family.model_types for r in registry.ROLES for field in fields.known_fields(family, t, r)
        }
        assert asked <= known, (family.name, asked - known)


@pytest.mark.parity
@pytest.mark.parametrize("model_type", registry.BY_MODEL_TYPE)
def test_every_field_of_torch_s_class_passes(model_type):
    transformers = pytest.importorskip("transformers")
    try:
        config = transformers.AutoConfig.for_model(model_type)
    except ValueError:
        pytest.skip("no config class of its own")
    family = registry.BY_MODEL_TYPE[model_type]
    for role in family.prefixes:
        content = {**config.to_dict(), "model_type": model_type}
        assert given_config(content, role) == content
        assert given_config(config, role)["model_type"] == config.model_type


@pytest.mark.parity
def test_transformers_configs_in_place_of_the_checkpoint_s(tmp_path):
    transformers = pytest.importorskip("transformers")
    fields_of = lambda config: {k: v for k, v in config.items() if k != "model_type"}
    bert, gpt2 = transformers.BertConfig(**fields_of(BERT)), transformers.GPT2Config(**fields_of(GPT2))
    equal(from_encoder_decoder_configs(bert, gpt2).params, from_encoder_decoder_configs(BERT, GPT2).params)
    alone = standalone(tmp_path, make_pair(), "encoder", BERT)
    bert.num_hidden_layers, bert.hidden_dropout_prob = 1, 0.25
    pair = from_encoder_decoder_pretrained(alone, alone, encoder_config=bert, **TOKENS)
    assert (pair.config.encoder.num_layers, pair.config.encoder.dropout, pair.config.decoder.num_layers) == (1, 0.25, 3)
    assert pair.report.of("cut", "encoder")
    with pytest.raises(ValueError, match=r"decoder_config is a 'gpt2' config, and .* holds a 'bert' model"):
        from_encoder_decoder_pretrained(alone, alone, decoder_config=gpt2, **TOKENS)
