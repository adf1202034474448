"""Every activation that config.json may name, and its derivative, against torch's."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.activations import ACT2CLS, ACT2FN  # noqa: E402

from seq2seq_jax.config import ACTIVATIONS, TransformerConfig  # noqa: E402
from seq2seq_jax.models import layers  # noqa: E402

pytestmark = pytest.mark.parity
WITH_PARAMETERS = {"prelu", "xielu"}
# Large magnitudes, and the points where a function bends.
GRID = np.concatenate([np.linspace(-12, 12, 97), [-1e6, -1e4, -100.0, -50.0, 50.0, 100.0, 1e4, 1e6]]).astype(np.float32)
SIZES = {"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "intermediate_size": 4}


def test_all_names_are_known():
    assert set(ACTIVATIONS) == set(layers.ACTIVATIONS) == set(ACT2CLS) - WITH_PARAMETERS


@pytest.mark.parametrize("name", sorted(ACT2CLS.keys() - WITH_PARAMETERS))
def test_values_and_derivatives(name):
    x = torch.tensor(GRID, requires_grad=True)
    theirs = ACT2FN[name](x)
    theirs.sum().backward()
    ours, back = jax.vjp(layers.ACTIVATIONS[name], GRID)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-6, atol=2e-6)
    slope, there = back(np.ones_like(GRID))[0], x.grad.numpy()
    known = np.isfinite(there)  # the root's slope where its softplus is rounded to 0 is not a number
    assert known.sum() >= len(GRID) - 3
    np.testing.assert_allclose(slope[known], there[known], rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("name, near", [("gelu_tanh", "gelu_python_tanh"), ("relu_2", "relu2"), ("prelu", "relu")])
def test_unknown_name(name, near):
    with pytest.raises(ValueError, match=f"activation '{name}' is unknown: did you mean '{near}'"):
        TransformerConfig(family="bert", activation=name, **SIZES)
