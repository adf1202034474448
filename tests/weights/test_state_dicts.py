"""Weight files as people save them: wrapped, prefixed, nested, old, with other things beside; what is not sound."""

import json
import os
import pickle

import numpy as np
import pytest

from seq2seq_jax.pretrained.loading import from_pretrained
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_configs, from_encoder_decoder_pretrained
from seq2seq_jax.weights.files import Checkpoint
from seq2seq_jax.weights.report import Report
from seq2seq_jax.weights.soundness import count_not_finite
from seq2seq_jax.weights.state_dicts import rooted
from tests.weights.checkpoints import BART, BERT, GPT2, TOKENS, equal, make_pair, refused, standalone, tensors, write

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def under(prefix):
    return lambda content: {prefix + name: value for name, value in content.items()}


def inside(part):
    """The part in the middle of every layer's names, as wrapped submodules leave it."""
    return lambda content: {name.replace("layer.0.", f"layer.0.{part}."): value for name, value in content.items()}


BESIDE = {"epoch": 3, "loss": None, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "lr": 0.1}}
FORMS = {
    "DataParallel": (under("module."), "'module.' is left out of"),
    "compiled": (under("_orig_mod."), "'_orig_mod.' is left out of"),
    "both": (under("module._orig_mod."), "'_orig_mod.' is left out of"),
    "FSDP in the middle": (inside("_fsdp_wrapped_module"), "'_fsdp_wrapped_module.' is left out of"),
    "compiled layer": (inside("_orig_mod"), "'_orig_mod.' is left out of"),
    "attribute": (under("net.core."), "begin with 'net.core.', which is left out"),
    "state_dict": (lambda c: {"state_dict": c, **BESIDE}, "begin with 'state_dict.', which is left out"),
    "model_state_dict": (lambda c: {"model_state_dict": c}, "begin with 'model_state_dict.'"),
    "trainer": (lambda c: {"model": c, **BESIDE}, "epoch (int), loss (NoneType), optimizer.lr (float) is left out"),
    "DeepSpeed": (lambda c: {"module": c, **BESIDE}, "begin with 'module.', which is left out"),
    "Lightning": (lambda c: {"state_dict": under("model.")(c), "callbacks": {}}, "begin with 'state_dict.model.'"),
    "parameters": (lambda c: {name: torch.nn.Parameter(value) for name, value in c.items()}, None),
    "things beside": (lambda c: {**c, "step": 7}, "step (int) is left out; it is no tensor"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Names and tensors of a pair, of a BERT encoder, and of a whole BART."""
    pair, directory = make_pair(BERT, GPT2), tmp_path_factory.mktemp("plain")
    save_pretrained(directory / "pair", pair)
    alone = standalone(directory, pair, "encoder", BERT, prefix="bert.")
    sides = from_encoder_decoder_configs(BART, BART, **TOKENS)
    save_pretrained(directory / "bart", sides)
    halves = {name.removeprefix("decoder."): value for name, value in tensors(directory / "bart").items()}
    whole = {f"model.{n}" if n.startswith("encoder.") else n: value for n, value in halves.items()}
    whole["final_logits_bias"] = np.zeros((1, BART["vocab_size"]), np.float32)
    config = json.loads((directory / "pair" / "config.json").read_text())
    return {"pair": (tensors(directory / "pair"), config), "encoder": (tensors(alone), BERT), "whole": (whole, BART)}


def saved(directory, content, config, form, **options):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(form({n: torch.tensor(v) for n, v in content.items()}), directory / "pytorch_model.bin", **options)
    return directory


def load(kind, directory, beside=None):
    if kind == "encoder":
        return from_encoder_decoder_pretrained(directory, beside, **TOKENS)
    return from_pretrained(directory)


@pytest.mark.parametrize("kind", ["pair", "encoder", "whole"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, kind, plain, tmp_path):
    """Every tensor is found under its own name, and a note says what was taken away."""
    change, said = FORMS[form]
    content, config = plain[kind]
    if form in ("FSDP in the middle", "compiled layer") and kind == "whole":
        change = lambda c: {n.replace("layers.0.", "layers.0._orig_mod."): v for n, v in c.items()}
        said = "'_orig_mod.' is left out of"
    report = Report()
    found = Checkpoint(saved(tmp_path, content, config, change), report.note)
    found = rooted(found, content, f"bert {kind}", kind, report)
    assert sorted(found) == sorted(content)
    for name, value in content.items():
        assert name in found and found.file_of(name) == tmp_path / "pytorch_model.bin"
        np.testing.assert_array_equal(found.read(name), value)
    assert (said is None and not report.notes) or any(said in note for note in report.notes), report.notes
    others = {entry.name for entry in report.of("other part")}
    assert others == ({"optimizer.state.0.exp_avg"} if form in ("state_dict", "trainer", "DeepSpeed") else set())


@pytest.mark.parametrize(("kind", "form"), [("pair", "Lightning"), ("whole", "both"), ("encoder", "trainer")])
@pytest.mark.parametrize("zipped", [True, False])
def test_forms_load(kind, form, zipped, plain, tmp_path):
    """Through the doors; also in the format of torch before 1.6."""
    content, config = plain[kind]
    decoder = {n.removeprefix("decoder."): v for n, v in plain["pair"][0].items() if n.startswith("decoder.")}
    gpt2 = write(tmp_path / "gpt2", decoder, GPT2)
    expected = load(kind, saved(tmp_path / "plain", content, config, lambda c: c), gpt2)
    wrapped = saved(tmp_path / "wrapped", content, config, FORMS[form][0], _use_new_zipfile_serialization=zipped)
    made = load(kind, wrapped, gpt2)
    equal(made.params, expected.params)
    assert any("left out" in note for note in set(made.report.notes) - set(expected.report.notes))


def test_wrappers_of_torch(plain, tmp_path):
    """What torch's own wrappers write, in safetensors too."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    model = transformers.BertModel(transformers.BertConfig(**BERT))
    names = sorted(model.state_dict())
    parallel, compiled = torch.nn.DataParallel(model), torch.compile(model)
    model.encoder.layer[0] = torch.compile(model.encoder.layer[0])
    for wrapped in (parallel, compiled):
        state = wrapped.state_dict()
        assert any("_orig_mod.attention" in name for name in state) and sorted(state) != names
        save_file(dict(state), tmp_path / "model.safetensors")
        notes = []
        assert sorted(Checkpoint(tmp_path, notes.append)) == names and notes


def test_half_of_the_other_role(plain, tmp_path):
    """BART's decoder has all names of an encoder, and is none."""
    decoder = {n: v for n, v in plain["whole"][0].items() if n.startswith("model.decoder.")}
    write(tmp_path, {n: v for n, v in decoder.items() if "encoder_attn" not in n}, BART)
    refused("no tensor of a bart encoder is there", from_encoder_decoder_pretrained, tmp_path, tmp_path)


def test_bad_names(plain, tmp_path):
    content, config = plain["encoder"]
    load_it = lambda: from_encoder_decoder_pretrained(tmp_path, tmp_path, **TOKENS)
    write(tmp_path, {"a.x": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1), "d": np.zeros(1)}, config)
    refused(r"no tensor of a bert encoder is there; looked for 'embeddings.word_embeddings.weight', .* and found 'a.x',"
            r" 'b', 'c' and 1 more; give", load_it)  # fmt: skip
    write(tmp_path, {**under("query.")(content), **under("passage.")(content)}, config)
    refused("a bert encoder lies under 'query.' and under 'passage.'; keep one of them", load_it)
    write(tmp_path, {**content, **inside("_orig_mod")(content)}, config)
    refused("'bert.encoder.layer.0.* are one tensor, 'bert.encoder.layer.0.*; keep one of them", load_it)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_no_code_runs(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Attack(), {"bert.pooler.dense.bias": torch.zeros(2), "x": Attack()}):
        for zipped in (True, False):
            directory = saved(tmp_path, {}, BERT, lambda _, c=content: c, _use_new_zipfile_serialization=zipped)
            refused(
                "cannot be read as tensors only .*system.*; fetch it again, or save safetensors", Checkpoint, directory
            )
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    refused("cannot be read as tensors only", Checkpoint, tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("content", [{"epoch": 3, "args": {"lr": 0.1}}, [1, 2], {}])
def test_no_tensors(content, tmp_path):
    refused("pytorch_model.bin holds no tensors, only .*; save a state dict", Checkpoint,
            saved(tmp_path, {}, BERT, lambda _: content))  # fmt: skip


KERNEL = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "complex64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("safe", [True, False])
def test_dtypes(dtype, safe, plain, tmp_path):
    """A parameter in a type that is none names the file, the tensor, the type and what to do."""
    from safetensors.torch import save_file

    content = {n: torch.tensor(v) for n, v in plain["encoder"][0].items()}
    content["bert." + KERNEL] = content["bert." + KERNEL].to(getattr(torch, dtype))
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    if safe:
        save_file(content, tmp_path / "model.safetensors")
    else:
        torch.save(content, tmp_path / "pytorch_model.bin")
    short = {
        "float8_e4m3fn": "(F8_E4M3|float8_e4m3fn)",
        "float8_e5m2": "(F8_E5M2|float8_e5m2)",
        "complex64": "(C64|complex64)",
    }
    message = rf"{'model.safetensors' if safe else 'model.bin'}: bert.{KERNEL} is stored as {short.get(dtype, dtype)},"
    refused(f"{message}.* dequantise", from_encoder_decoder_pretrained, tmp_path, tmp_path, **TOKENS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [(), (np.nan,), (np.inf,), (np.inf, -np.inf, np.nan)])
def test_count_not_finite(dtype, bad, tmp_path):
    values = torch.full((7, 3), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows
    values.view(-1)[: len(bad)] = torch.tensor(bad, dtype=dtype)
    torch.save({"x": values.T}, tmp_path / "pytorch_model.bin")
    assert count_not_finite(Checkpoint(tmp_path).read("x")) == len(bad)


def test_not_finite(plain, tmp_path):
    content, config = plain["pair"]
    name = f"encoder.{KERNEL}"
    content = {**content, name: content[name].copy()}
    content[name][2, 1], content[name][0, 0] = np.inf, np.nan
    with pytest.warns(UserWarning, match=f"2 of the 240 numbers of {name} are NaN or infinite"):
        pair = from_pretrained(write(tmp_path, content, config))
    assert [note for note in pair.report.notes if "model.safetensors: 2 of the 240 numbers" in note]
    save_pretrained(tmp_path / "again", pair)
    np.testing.assert_array_equal(tensors(tmp_path / "again")[name], content[name])


@pytest.mark.parametrize(
    "added",
    ["weight.absmax", "weight.quant_state.bitsandbytes__nf4", "SCB", "qweight", "weight_packed", "weight_scale_inv"],
)
def test_quantised(added, plain, tmp_path):
    content, config = plain["encoder"]
    content = {**content, "bert." + KERNEL.replace("weight", added): np.zeros(4, np.float32)}
    write(tmp_path, content, {**config, "quantization_config": {"quant_method": "gptq"}})
    refused(f"quantised by gptq .*dense.{added}.*; take the checkpoint that they were made from, or dequantise",
            from_encoder_decoder_pretrained, tmp_path, tmp_path, **TOKENS)  # fmt: skip
