"""Checkpoint directories in and out: names, dtypes, shards, layers, generation settings, the report."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.saving import save_orbax, save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained
from seq2seq_jax.weights.files import Checkpoint
from tests.weights.checkpoints import BART, BERT, GPT2, TOKENS, equal, make_pair, standalone, tensors, write


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    pair, directory = make_pair(BERT, GPT2), tmp_path_factory.mktemp("saved")
    save_pretrained(directory, pair)
    return pair, directory


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    """A BERT pair, and its encoder as a checkpoint of its own with a pooler and old names."""
    pair, directory = make_pair(BERT, BERT), tmp_path_factory.mktemp("berts")
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    alone = standalone(directory, pair, "encoder", BERT, prefix="bert.", rename=old)
    content = tensors(alone)
    rng = np.random.default_rng(0)
    content["bert.pooler.dense.weight"] = rng.standard_normal((12, 12)).astype(np.float32)
    content["bert.pooler.dense.bias"] = rng.standard_normal(12).astype(np.float32)
    content["bert.embeddings.position_ids"] = np.arange(16)[None]
    content["cls.predictions.bias"] = np.zeros(31, np.float32)
    content["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
    return pair, write(alone, content, {**BERT, "custom_field": {"kept": [1, 2]}})


def test_round_trip(saved, tmp_path):
    pair, directory = saved
    again = from_pretrained(directory)
    equal(again.params, pair.params)
    assert {e.status for e in again.report.entries} == {"copied"}
    assert sorted(e.name for e in again.report.entries) == sorted(tensors(directory))
    save_pretrained(tmp_path, again)
    assert (tmp_path / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert (tmp_path / "config.json").read_text() == (directory / "config.json").read_text()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_returns_in_its_dtype(saved, tmp_path, dtype):
    _, directory = saved
    half = {name: value.astype(dtype) for name, value in tensors(directory).items()}
    write(tmp_path / "half", half, json.loads((directory / "config.json").read_text()))
    pair = from_pretrained(tmp_path / "half")
    assert {str(x.dtype) for x in flatten_dict(pair.params).values()} == {"float32"}
    save_pretrained(tmp_path / "again", pair)
    for name, value in tensors(tmp_path / "again").items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, half[name])
    save_pretrained(tmp_path / "whole", pair, dtype=np.float32)
    assert {v.dtype for v in tensors(tmp_path / "whole").values()} == {np.dtype(np.float32)}


def test_shards(saved, tmp_path):
    pair, directory = saved
    save_pretrained(tmp_path, pair, max_shard_size="15KB")
    files = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"]) == set(tensors(directory))
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors(directory).values())
    equal(from_pretrained(tmp_path).params, pair.params)
    save_pretrained(tmp_path, pair)
    assert not list(tmp_path.glob("model-*")) and (tmp_path / "model.safetensors").exists(), "stale shards stay"
    equal(from_pretrained(tmp_path).params, pair.params)


@pytest.mark.parity
def test_bin_files(saved, tmp_path):
    torch = pytest.importorskip("torch")
    pair, directory = saved
    content = {name: torch.tensor(value).to(torch.bfloat16) for name, value in tensors(directory).items()}
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    torch.save(content, tmp_path / "pytorch_model.bin")
    one = from_pretrained(tmp_path)
    assert set(one.dtypes.values()) == {"bfloat16"}
    (tmp_path / "pytorch_model.bin").unlink()
    names = list(content)
    weight_map = {}
    for i, part in enumerate((names[:20], names[20:])):
        torch.save({name: content[name] for name in part}, tmp_path / f"part-{i}.bin")
        weight_map |= dict.fromkeys(part, f"part-{i}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    equal(from_pretrained(tmp_path).params, one.params)
    for path, value in flatten_dict(pair.params, sep="/").items():
        other = flatten_dict(one.params, sep="/")[path]
        np.testing.assert_allclose(np.asarray(other), np.asarray(value), rtol=1e-2, atol=1e-2)


def test_old_names_prefixes_and_what_is_left(berts, tmp_path):
    pair, alone = berts
    made = from_encoder_decoder_pretrained(alone, alone, **TOKENS)
    equal(made.params["encoder"], pair.params["encoder"])
    report = made.report
    assert {e.name for e in report.of("passed through", "encoder")} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert {e.name for e in report.of("ignored", "encoder")} == {"bert.embeddings.position_ids"}
    assert {e.name for e in report.of("other part", "encoder")} == {
        "cls.predictions.bias", "cls.seq_relationship.bias"}  # fmt: skip
    new = {e.name for e in report.of("initialised")}
    assert all("cross_attention" in name or name.startswith("decoder/head/") for name in new) and len(new) > 10
    for side in ("encoder", "decoder"):
        names = [e.name for e in report.entries if e.side == side and e.status != "initialised"]
        assert sorted(names) == sorted(Checkpoint(alone)), "each tensor of the file stands in the report once"
    text = str(report)
    assert "passed through (written back on export): " in text and "initialised (normal): " in text
    save_pretrained(tmp_path, made)
    assert json.loads((tmp_path / "config.json").read_text())["encoder"]["custom_field"] == {"kept": [1, 2]}
    np.testing.assert_array_equal(
        tensors(tmp_path)["encoder.pooler.dense.weight"], tensors(alone)["bert.pooler.dense.weight"]
    )
    assert not any("decoder.bert.pooler" in name for name in tensors(tmp_path))


def test_layers_kept_and_fields_overridden(berts):
    pair, alone = berts
    made = from_encoder_decoder_pretrained(
        alone, alone, **TOKENS, encoder_keep_layers=(0, 2), decoder_num_hidden_layers=1,
        encoder_hidden_dropout_prob=0.25, encoder_max_position_embeddings=20, decoder_max_position_embeddings=9,
    )  # fmt: skip
    assert (made.config.encoder.num_layers, made.config.decoder.num_layers) == (2, 1)
    assert made.config.encoder.dropout == 0.25
    kernel = "layers/stacked/block_0/mlp/up/kernel"
    ours, whole = (flatten_dict(p.params["encoder"], sep="/")[kernel] for p in (made, pair))
    np.testing.assert_array_equal(ours, whole[np.array([0, 2])])
    assert made.report.of("cut", "encoder") and all(".layer.1." in e.name for e in made.report.of("cut", "encoder"))
    table, old = (p.params["encoder"]["embeddings"]["position"]["embedding"] for p in (made, pair))
    np.testing.assert_array_equal(table[:16], old)
    np.testing.assert_array_equal(table[16:], np.repeat(old[-1:], 4, axis=0))
    assert made.params["decoder"]["embeddings"]["position"]["embedding"].shape == (9, 12)
    assert len(made.report.of("resized")) == 2


def test_whole_bart_gives_either_half(tmp_path):
    pair = make_pair(BART, BART)
    save_pretrained(tmp_path / "pair", pair)
    content = {"model.shared.weight": None, "final_logits_bias": np.zeros((1, 33), np.float32)}
    for name, value in tensors(tmp_path / "pair").items():
        name = name.replace("decoder.model.decoder.", "model.decoder.")
        name = "model." + name if name.startswith("encoder.") else name
        if name == "model.decoder.embed_tokens.weight":
            content["model.shared.weight"] = value
        elif name != "model.encoder.embed_tokens.weight":
            content[name] = value
    bart = write(tmp_path / "bart", content, BART)
    encoder_only = from_encoder_decoder_pretrained(bart, standalone(tmp_path, make_pair(BERT, GPT2), "decoder", GPT2))
    decoder_only = from_encoder_decoder_pretrained(bart, bart)
    for made in (encoder_only, decoder_only):
        flat, whole = (flatten_dict(p.params["encoder"], sep="/") for p in (made, pair))
        for path in set(whole) - {"embeddings/token/embedding"}:
            np.testing.assert_array_equal(flat[path], whole[path])
    flat, whole = (flatten_dict(p.params["decoder"], sep="/") for p in (decoder_only, pair))
    for path, value in whole.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)
    assert not decoder_only.report.of("initialised"), "BART's decoder brings its cross-attention"
    assert {e.name for e in decoder_only.report.of("other part", "decoder")} > {"final_logits_bias"}
    assert decoder_only.config.decoder_start_token_id == 2 and decoder_only.config.pad_token_id == 1


def test_duplicate_heads_and_buffers(saved, tmp_path):
    pair, directory = saved
    config = json.loads((directory / "config.json").read_text())
    content = tensors(directory)
    content["decoder.lm_head.weight"] = content["decoder.transformer.wte.weight"]
    content["decoder.transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    equal_copy = from_pretrained(write(tmp_path / "equal", content, config))
    equal(equal_copy.params, pair.params)
    assert [e.name for e in equal_copy.report.of("tied")] == ["decoder.lm_head.weight"]
    assert [e.name for e in equal_copy.report.of("ignored")] == ["decoder.transformer.h.0.attn.bias"]
    content["decoder.lm_head.weight"] = content["decoder.lm_head.weight"] + 1
    unequal = from_pretrained(write(tmp_path / "unequal", content, config))
    equal(unequal.params, pair.params)
    assert "differs from decoder.transformer.wte.weight" in unequal.report.of("passed through")[0].detail
    save_pretrained(tmp_path / "back", unequal)
    np.testing.assert_array_equal(
        tensors(tmp_path / "back")["decoder.lm_head.weight"], content["decoder.lm_head.weight"]
    )


def test_generation_settings_where_they_hide(saved, tmp_path):
    _, directory = saved
    config = json.loads((directory / "config.json").read_text())
    config.update(num_beams=5, eos_token_id=7)
    config["decoder"].update(num_beams=2, length_penalty=0.5, max_length=20)
    write(tmp_path, tensors(directory), config)
    old = from_pretrained(tmp_path)
    assert old.generation_config.num_beams == 5 and old.generation_config.length_penalty == 0.5
    assert old.generation_config.max_length is None and old.config.eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"num_beams": 3, "custom": "kept", "eos_token_id": [4, 5]}')
    new = from_pretrained(tmp_path)
    assert new.generation_config.num_beams == 3 and new.generation_config.length_penalty == 1.0
    assert new.config.eos_token_ids == (4, 5) and new.config.decoder_start_token_id == 1
    save_pretrained(tmp_path / "again", new)
    written = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert written["custom"] == "kept" and written["eos_token_id"] == [4, 5] and written["num_beams"] == 3


def test_renamed_fields_and_legacy_model_type(saved, tmp_path):
    pair, directory = saved
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "encoder_decoder"
    config["decoder"]["hidden_size"] = config["decoder"].pop("n_embd")
    equal(from_pretrained(write(tmp_path, tensors(directory), config)).params, pair.params)


def test_orbax_directory(saved, tmp_path):
    pair, directory = saved
    pair = from_pretrained(directory)
    save_orbax(tmp_path / "orbax", pair)
    again = from_pretrained(tmp_path / "orbax")
    equal(again.params, pair.params)
    save_pretrained(tmp_path / "torch", again)
    assert (tmp_path / "torch" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_save_file_reads_what_lies_in_memory():
    """Why write_safetensors makes arrays contiguous: a transposed view would be stored wrongly without a word."""
    import tempfile

    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with tempfile.TemporaryDirectory() as directory:
        from pathlib import Path

        from seq2seq_jax.weights.files import write_safetensors

        write_safetensors(Path(directory), iter([("a", view)]), "1GB")
        np.testing.assert_array_equal(tensors(Path(directory))["a"], view)


@pytest.mark.parametrize("config, prefix", [(BERT, "bert."), (GPT2, "transformer.")], ids=["bert", "gpt2"])
def test_a_decoder_serves_as_encoder(config, prefix, tmp_path):
    """Its cross-attention is left aside, as torch leaves it; what is unknown stays an error."""
    alone = standalone(tmp_path, make_pair(config, config), "decoder", config, prefix=prefix)
    made = from_encoder_decoder_pretrained(alone, alone, **TOKENS)
    parts = {entry.name for entry in made.report.of("other part", "encoder") if "cross" in entry.detail}
    assert parts == {name for name in tensors(alone) if "cross" in name}
    content = {**tensors(alone), f"{prefix}crossed.weight": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="nothing is known about the tensor"):
        from_encoder_decoder_pretrained(write(alone, content, None), alone, **TOKENS)
