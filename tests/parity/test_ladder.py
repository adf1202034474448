"""All pairings of the three families against the live torch classes, rung by rung."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
KINDS = ("bert", "gpt2", "bart")
# Equal widths (no projection) and one and many layers, beside the default awkward shapes.
PAIRINGS = [*itertools.product(KINDS, KINDS)]
MORE = {
    "equal widths, tied by config, one layer": ("bert", "bert", {}, {"num_hidden_layers": 1}),
    "wider decoder, five layers": ("bert", "bert", {}, {"hidden_size": 24, "num_hidden_layers": 5}),
    "untied head": ("gpt2", "bert", {}, {"tie_word_embeddings": False}),
    "untied head of gpt2": ("bert", "gpt2", {}, {"tie_word_embeddings": False}),
    "scale by layer number": ("bert", "gpt2", {}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}),
    "scores not scaled, relu": ("bert", "gpt2", {"hidden_act": "relu"}, {"scale_attn_weights": False}),
}


def vocabularies(model):
    return model.config.encoder.vocab_size, model.config.decoder.vocab_size


class Case:
    def __init__(self, directory, encoder, decoder, encoder_changes=None, decoder_changes=None):
        self.torch = torch_models.pair(
            encoder, decoder, encoder_changes=encoder_changes, decoder_changes=decoder_changes
        )
        self.directory = directory
        self.torch.save_pretrained(directory)
        self.pair = from_pretrained(directory)
        self.results = torch_models.results(self.torch, ladder.random_batch(vocabularies(self.torch)))


# The default run climbs one; four committed ones are climbed without torch (tests/test_fixed_ladder.py).
QUICK = [("bert", "gpt2")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*(p for p in PAIRINGS if p not in QUICK), *MORE)]


@pytest.fixture(scope="module", params=[*QUICK, *SLOW], ids=lambda p: p if isinstance(p, str) else "-".join(p))
def case(request, tmp_path_factory):
    arguments = MORE[request.param] if isinstance(request.param, str) else request.param
    return Case(tmp_path_factory.mktemp("pair"), *arguments)


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_rung(case, rung):
    rung(case.pair, case.results)


def test_every_tensor_returns_bit_for_bit_and_torch_loads_it(case, tmp_path):
    save_pretrained(tmp_path, case.pair)
    before, after = load_file(case.directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    if case.torch.config.encoder.model_type == "bart":
        return  # torch's AutoModel of bart is the whole seq2seq model: it cannot reload such a pair, not even its own
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = again(**{k: torch.tensor(v) for k, v in ladder.batch_of(case.results).items()}).logits
    np.testing.assert_allclose(logits.numpy(), case.results["logits"], atol=1e-6)
