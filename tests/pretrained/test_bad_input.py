"""Bad checkpoints: one line that names the thing, the value and the remedy."""

import builtins
import json

import numpy as np
import pytest

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs, from_encoder_decoder_pretrained
from tests.weights.checkpoints import BERT, GPT2, TOKENS, make_pair, refused, standalone, tensors, write


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    save_pretrained(directory, make_pair(BERT, GPT2))
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    """A directory to spoil, its config and its tensors."""
    config, content = json.loads((saved / "config.json").read_text()), tensors(saved)
    return write(tmp_path / "copy", content, config), config, content


def test_missing_directory(tmp_path):
    refused("there is no directory './nowhere'; give an existing one", from_pretrained, "./nowhere")
    refused("there is no directory", from_pretrained, tmp_path / "nowhere")


def test_file_for_a_directory(copy):
    refused("is a file; give the directory", from_pretrained, copy[0] / "config.json")


def test_missing_config(copy):
    (copy[0] / "config.json").unlink()
    refused(r"config.json is missing", from_pretrained, copy[0])


def test_broken_config(copy):
    (copy[0] / "config.json").write_text('{"model_type": \n oops}')
    refused(r"config.json is no valid JSON \(line 2", from_pretrained, copy[0])


def test_missing_weights(copy):
    (copy[0] / "model.safetensors").unlink()
    refused(r"holds no weights; looked for model.safetensors", from_pretrained, copy[0])


def test_truncated_safetensors(copy):
    file = copy[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(r"model.safetensors is damaged or cut short .* fetch it again", from_pretrained, copy[0])


def test_missing_shard(saved, tmp_path):
    save_pretrained(tmp_path, make_pair(BERT, GPT2), max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*"))[1]
    lost.unlink()
    refused(f"names '{lost.name}', which is missing", from_pretrained, tmp_path)


def test_shard_size(tmp_path):
    refused("max_shard_size is 'big'; give a number", save_pretrained, tmp_path, make_pair(), max_shard_size="big")


def test_unknown_family(copy):
    directory, config, content = copy
    config["encoder"]["model_type"] = "berd"
    refused(
        "model_type 'berd' is not supported: did you mean 'bert'", from_pretrained, write(directory, content, config)
    )


def test_not_a_pair(copy, tmp_path):
    alone = standalone(tmp_path, make_pair(), "encoder", BERT)
    refused(
        "model_type .bert. is one side, not an encoder-decoder pair.*from_encoder_decoder_pretrained",
        from_pretrained,
        alone,
    )
    directory, config, content = copy
    del config["decoder"]
    refused("has no 'decoder' section", from_pretrained, write(directory, content, config))


@pytest.mark.parametrize("shape", [(31, 11), (30, 12), (5,)])
def test_wrong_shape(copy, shape):
    directory, config, content = copy
    content["encoder.embeddings.word_embeddings.weight"] = np.zeros(shape, np.float32)
    message = rf"word_embeddings.weight has shape \[{', '.join(map(str, shape))}\], and config.json asks for \[31, 12\]"
    refused(message, from_pretrained, write(directory, content, config))


def test_wrong_shape_of_a_kernel(copy):
    directory, config, content = copy
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    content[name] = np.zeros((13, 12), np.float32)
    refused(
        r"has shape \[13, 12\], and config.json asks for \[12, 12\]", from_pretrained, write(directory, content, config)
    )


def test_missing_tensor(copy):
    directory, config, content = copy
    del content["decoder.transformer.h.1.crossattention.q_attn.weight"]
    refused("lacks the tensor 'decoder.transformer.h.1.crossattention.q_attn.weight'", from_pretrained,
            write(directory, content, config))  # fmt: skip


@pytest.mark.parametrize("name", ["encoder.extra.weight", "elsewhere.weight"])
def test_unexpected_tensor(copy, name):
    directory, config, content = copy
    content[name] = np.zeros(3, np.float32)
    refused(f"nothing is known about the tensor '{name}'", from_pretrained, write(directory, content, config))


def test_layers_beyond_the_depth(copy):
    directory, config, content = copy
    config["encoder"]["num_hidden_layers"] = 2
    refused("give encoder_num_hidden_layers or encoder_keep_layers", from_pretrained, write(directory, content, config))


def test_missing_encoder_layer(tmp_path):
    alone = standalone(tmp_path, make_pair(), "encoder", BERT, without=("layer.1.output.dense",))
    refused(
        "lacks the tensor .*layer.1.output.dense.* it is not a whole",
        from_encoder_decoder_pretrained,
        alone,
        alone,
        **TOKENS,
    )


def test_bin_without_torch(copy, monkeypatch):
    directory, _, _ = copy
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not read")
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "torch":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused("needs torch", from_pretrained, directory)


def test_head_sizes_that_do_not_divide(copy):
    directory, config, content = copy
    config["encoder"]["num_attention_heads"] = 5
    refused("hidden_size 12 is no multiple of num_heads 5", from_pretrained, write(directory, content, config))


def test_tokens_that_cannot_be_derived():
    pair = from_encoder_decoder_configs(BERT, BERT)
    ids = np.array([[3, 4]])
    refused("decoder_start_token_id is not known.* give decoder_start_token_id=", pair.model.apply,
            {"params": pair.params}, ids, labels=ids)  # fmt: skip
    refused("decoder_start_token_id is not known; give decoder_start_token_id=", pair.generate, ids)
    started = from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1)
    refused(r"eos_token_id is not known; give eos_token_id=..., or eos_token_id=\(\)", started.generate, ids)
    no_pad = from_encoder_decoder_configs(BERT, {**BERT, "pad_token_id": None}, decoder_start_token_id=1)
    refused("pad_token_id is not known", no_pad.model.apply, {"params": no_pad.params}, ids, labels=ids)
    refused("pad_token_id is not known", no_pad.generate, ids, eos_token_id=())
    gpt2 = from_encoder_decoder_configs(BERT, GPT2)
    assert gpt2.config.pad_token_id == 2 and "no pad token" in gpt2.report.notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "the decoder's prompt has 1 tokens and max_length is 1; raise max_length"),
        ({"max_length": 17}, "max_length 17 is beyond the decoder's 16 positions; lower max_length"),
        ({"min_length": 9, "max_length": 5}, "min_length asks for 9 tokens and max_length is 5"),
        ({"do_sample": True}, r"give rng=jax.random.key"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 is above num_beams 2"),
        ({"num_return_sequences": 2}, "greedy search gives one output"),
        ({"do_sample": True, "num_beams": 2}, "give rng="),
        ({"num_beam": 2}, "'num_beam' is unknown: did you mean 'num_beams'"),
        ({"temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"eos_token_id": 99}, "eos_token_id holds the id 99, outside the vocabulary of 31"),
        ({"forced_bos_token_id": 99}, "forced_bos_token_id has \\[99\\]; give ids below the vocabulary"),
        ({"decoder_input_ids": [[99]]}, "decoder_input_ids holds the id 99"),
        ({"attention_mask": [[1]]}, r"attention_mask has shape \[1, 1\] and input_ids \[1, 2\]"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'; give True, False or 'never'"),
    ],
)
def test_generation_settings(settings, message):
    pair = from_encoder_decoder_configs(BERT, BERT, **TOKENS)
    refused(message, pair.generate, np.array([[3, 4]]), **settings)


def test_generation_input():
    pair = from_encoder_decoder_configs(BERT, BERT, **TOKENS)
    refused("input_ids holds the id 31, outside the vocabulary of 31", pair.generate, np.array([[31]]))
    refused("the source has 17 tokens and the encoder 16 positions; cut it", pair.generate, np.full((1, 17), 3))
    refused(r"give \[batch, source\]", pair.generate, np.array([3, 4]))
