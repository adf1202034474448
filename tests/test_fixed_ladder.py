"""The ladder on committed torch results: where there is no torch. Else the classes themselves are asked, for more pairs
(parity/test_ladder.py)."""

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import load_file

from seq2seq_jax.pretrained.saving import save_pretrained
from tests import fixed, ladder

LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.skipif(LIVE, reason="parity/test_ladder.py asks torch itself")


@pytest.fixture(scope="module", params=fixed.NAMES)
def case(request):
    return (*fixed.load(request.param), fixed.DIRECTORY / request.param)


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_rung(case, rung):
    pair, results, _ = case
    rung(pair, results)


def test_every_tensor_returns_bit_for_bit(case, tmp_path):
    pair, _, directory = case
    save_pretrained(tmp_path, pair)
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
