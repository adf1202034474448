"""GGUF files: each architecture against torch's model of the same values, and what is refused."""

import sys

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_decoder, save_pretrained  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from seq2seq_jax.weights.files import Checkpoint  # noqa: E402
from seq2seq_jax.weights.gguf_files import open_checkpoint, read_config  # noqa: E402
from tests.weights import gguf_writing  # noqa: E402
from tests.weights.checkpoints import write  # noqa: E402
from tests.weights.gguf_writing import write_model  # noqa: E402

SIZES = {"vocab_size": 45, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
TIED, WIDE = {"tie_word_embeddings": True}, {"head_dim": 32}
DEFAULT = {"rope_type": "default", "rope_theta": 100000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
GEMMA = {**TIED, **WIDE, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA3 = {"query_pre_attn_scalar": 32, "sliding_window": 3, "attn_logit_softcapping": None}
GEMMA3 |= {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6}
GEMMA3 |= {"final_logit_softcapping": None}
GEMMA2 = {"query_pre_attn_scalar": 32, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA2 |= {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}

# Name -> fields of config.json, rotary embedding, metadata of the file beyond the usual.
MODELS = {
    "llama": ({"model_type": "llama", **TIED}, DEFAULT, {}),
    "llama 3, biases": ({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, LLAMA3, {}),
    "mistral": ({"model_type": "mistral", "sliding_window": 3, **WIDE}, DEFAULT, {}),
    "qwen2": ({"model_type": "qwen2", **TIED}, LINEAR, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "qwen3": (
        {"model_type": "qwen3", **WIDE},
        YARN,
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 16},
    ),
    "gemma": ({"model_type": "gemma", **GEMMA}, DEFAULT, {}),
    "gemma2": ({"model_type": "gemma2", **GEMMA, **GEMMA2}, DEFAULT, {}),
    "gemma3": ({"model_type": "gemma3_text", **GEMMA, **GEMMA3}, DEFAULT, {}),
    "gemma3 linear": (
        {"model_type": "gemma3_text", **GEMMA, **GEMMA3},
        LINEAR,
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "attention.sliding_window_pattern": 6},
    ),
}
# One program for each kind of model; the others differ from these in numbers of the config, which are compared.
RUN = ("llama 3, biases", "qwen2", "qwen3", "gemma", "gemma2", "gemma3 linear")


def config_of(name):
    fields, rope, _ = MODELS[name]
    if fields["model_type"] == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": LOCAL}
    return {**SIZES, **fields, "rope_parameters": rope, "pad_token_id": None}


def written(path, name):
    """A file of random weights, torch's model of the values that it holds, and config.json as a dict."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = config_of(name)
    torch.manual_seed(3)
    theirs = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(theirs).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    extra = {}
    if config["rope_parameters"].get("rope_type") == "llama3":
        # What convert_hf_to_gguf.py writes: by how much each frequency is divided.
        frequencies = 500000.0 ** -(np.arange(8) / 8)
        extra = {"rope_freqs.weight": (frequencies / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)}
    values = write_model(path, config, state, settings=MODELS[name][2], tensors=extra)
    missing = model.load_state_dict({key: torch.tensor(value) for key, value in values.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    return model, config, values


def close(ours, theirs, name):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=1e-5, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_config_and_tensors(name, tmp_path):
    model, config, values = written(tmp_path / "model.gguf", name)
    found = read_config(tmp_path / "model.gguf")
    assert {key: found.get(key) for key in config} == {**config, "pad_token_id": None}
    assert type(model.config).from_dict(found).to_dict() == model.config.to_dict()
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint) == sorted(values)
    for key, value in values.items():
        read = checkpoint.read(key)
        np.testing.assert_allclose(read.astype(np.float32), value, rtol=1e-6, atol=1e-6, err_msg=key)
        assert read.shape == value.shape and checkpoint.file_of(key) == tmp_path / "model.gguf"


@pytest.mark.parity
@pytest.mark.parametrize("name", [n if n == "qwen3" else pytest.param(n, marks=pytest.mark.slow) for n in RUN])
def test_both_sides_as_torch(name, tmp_path):
    torch = pytest.importorskip("torch")
    model, _, _ = written(tmp_path / "model.gguf", name)
    pair = from_encoder_decoder_pretrained(tmp_path / "model.gguf", tmp_path)
    ids = np.random.default_rng(0).integers(3, 45, (2, 9))
    ours = jax.jit(lambda params, x: pair.model.apply({"params": params}, x, decoder_input_ids=x))(pair.params, ids)
    with torch.no_grad():
        theirs = model(torch.tensor(ids), output_hidden_states=True)
    close(ours.logits, theirs.logits.numpy(), "logits of the decoder, whose cross-attention begins as zero")
    close(ours.encoder_last_hidden_state, theirs.hidden_states[-1].numpy(), "states of the encoder")
    assert pair.config.decoder_start_token_id == 1 and pair.config.eos_token_ids == (2,)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory with one file and nothing else, as torch's random weights have it."""
    directory = tmp_path_factory.mktemp("llama")
    config = {**config_of("llama"), "num_hidden_layers": 3}
    rng, state = np.random.default_rng(0), {}
    for layer in range(3):
        for name, shape in {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64),
            "mlp.up_proj": (96, 64),
            "mlp.down_proj": (64, 96),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
        }.items():
            state[f"model.layers.{layer}.{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
    state["model.embed_tokens.weight"] = rng.standard_normal((45, 64)).astype(np.float32)
    state["model.norm.weight"] = np.ones(64, np.float32)
    write_model(directory / "model.gguf", config, state)
    return directory


def test_report_and_export(llama, tmp_path):
    """Quantized tensors are named as such and saved as float32; 16-bit ones stay so; layers may be left out."""
    pair = from_encoder_decoder_pretrained(llama, llama, decoder_keep_layers=(0, 2))
    said = str(pair.report)
    for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0"):
        assert f"copied (dequantized from {kind}): model." in said
    assert "dequantized from F16" not in said and "cut (2 layers kept): model.layers.1." in said
    save_pretrained(tmp_path / "pair", pair)
    saved, file = Checkpoint(tmp_path / "pair"), open_checkpoint(llama)
    dtypes = set()
    for name in file:
        dtypes.add(str(file.read(name).dtype))
        assert saved.read(f"encoder.{name.removeprefix('model.')}").dtype == file.read(name).dtype
        np.testing.assert_array_equal(saved.read(f"encoder.{name.removeprefix('model.')}"), file.read(name))
    assert dtypes == {"float32", "float16", "bfloat16"}
    again = from_pretrained(tmp_path / "pair")
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), pair.params, again.params))


@pytest.mark.parity
def test_decoder_alone_loads_in_torch(llama, tmp_path):
    transformers = pytest.importorskip("transformers")
    pair = from_encoder_decoder_pretrained(llama, llama)
    save_decoder(tmp_path, pair, dtype=np.float32)
    model, notes = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    file = open_checkpoint(llama)
    for name, value in model.named_parameters():
        np.testing.assert_array_equal(value.detach().float().numpy(), file.read(name).astype(np.float32))


def refused(message, call, *arguments):
    with pytest.raises((ValueError, FileNotFoundError, ImportError), match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_one_file_is_no_pair(llama):
    refused("model.gguf: model_type 'llama' is one side.*from_encoder_decoder_pretrained", from_pretrained, llama)


def test_which_file(llama, tmp_path):
    content = (llama / "model.gguf").read_bytes()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(content)
    refused(r"holds 2 GGUF files \(a.gguf, b.gguf\); give the path of one", open_checkpoint, tmp_path)
    assert "model.norm.weight" in open_checkpoint(tmp_path / "a.gguf")
    # Weights of another form go before.
    write(tmp_path, {"x": np.zeros(1)})
    assert isinstance(open_checkpoint(tmp_path), Checkpoint)


@pytest.mark.parametrize("where", ["magic", "version", "header", "tensors", "nothing"])
def test_broken_files(where, llama, tmp_path):
    content, file = bytearray((llama / "model.gguf").read_bytes()), tmp_path / "model.gguf"
    message = "model.gguf is damaged or cut short"
    if where == "magic":
        content[:4], message = b"GGML", "is no GGUF file"
    elif where == "version":
        content[4:8], message = b"\0\0\0\3", "of GGUF version 50331648"
    elif where == "header":
        content = content[:300]
    elif where == "tensors":
        content, message = content[: len(content) // 2], r"cut short \(tensor 'blk"
    else:
        content, message = b"", "is no GGUF file"
    file.write_bytes(content)
    refused(message, open_checkpoint, file)


@pytest.mark.parametrize(
    "arch, settings, tensors, message",
    [
        ("falcon", {}, (), "architecture 'falcon' is not read from GGUF; llama, qwen2"),
        ("llama", {"rope.scaling.type": "longrope"}, (), "scaling of type 'longrope' is not supported"),
        ("llama", {"rope.dimension_count": 4}, (), "4 of 16 dimensions of a head are rotary"),
        ("llama", {}, ("blk.0.ffn_gate_exps.weight",), "the tensor 'blk.0.ffn_gate_exps.weight' in a llama model"),
        ("qwen2", {}, ("blk.0.attn_sinks",), "the tensor 'blk.0.attn_sinks' in a qwen2 model"),
        ("llama", {}, ("rope_freqs.weight",), "rope_freqs.weight is not LLaMA 3's scaling"),
        ("gemma2", {}, (), "its metadata lack 'gemma2.attention.sliding_window'"),
    ],
)
def test_unsupported(arch, settings, tensors, message, tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, arch)
    counts = {"context_length": 8, "embedding_length": 64, "block_count": 1, "feed_forward_length": 8}
    for key, value in {**counts, "attention.head_count": 4, **settings}.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{arch}.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in ("token_embd.weight", *tensors):
        writer.add_tensor(name, np.linspace(2, 3, 8, dtype=np.float32))
    gguf_writing.finish(writer)
    refused(message, lambda: (read_config(file), open_checkpoint(file)))


def test_missing_file(llama):
    refused("there is no file 'missing.gguf'; give the path", from_encoder_decoder_pretrained, llama, "missing.gguf")


def test_parts(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    gguf_writing.finish(writer)
    refused("is one of 3 parts of a model; join them", open_checkpoint, tmp_path)


def test_without_the_package(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    checkpoint = open_checkpoint(llama)
    assert checkpoint.read("model.norm.weight").dtype == np.float32
    refused(
        r"quantized tensors, which need the package gguf; run: pip install", checkpoint.read, _quantized(checkpoint)
    )


def _quantized(checkpoint):
    return next(name for name in checkpoint if "q_proj" in name)
