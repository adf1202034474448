"""Objects of transformers' users: a GenerationConfig and a BatchEncoding, with arrays of torch and numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from seq2seq_jax.config import GenerationConfig  # noqa: E402
from tests.weights.checkpoints import BERT, make_pair  # noqa: E402

pytestmark = pytest.mark.parity
IDS = np.random.default_rng(0).integers(3, BERT["vocab_size"], (2, 5))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def pair():
    return make_pair(BERT, BERT)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 6, "num_beams": 2, "length_penalty": 0.5, "num_return_sequences": 2},
        {"max_length": 7, "repetition_penalty": 1.3, "return_dict_in_generate": True, "output_scores": True},
    ],
)
def test_generation_config(pair, settings):
    ours = {name: value for name, value in settings.items() if name != "return_dict_in_generate"}
    expected = pair.generate(IDS, MASK, GenerationConfig(**ours))
    found = pair.generate(IDS, MASK, generation_config=transformers.GenerationConfig(**settings))
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    assert (found.scores is None) == (expected.scores is None)


@pytest.mark.parametrize("tensor_type", [None, "np", "pt"])
def test_batch_encoding(pair, tensor_type):
    data = {"input_ids": IDS.tolist(), "token_type_ids": (0 * IDS).tolist(), "attention_mask": MASK.tolist()}
    batch = transformers.BatchEncoding(data, tensor_type=tensor_type)
    expected = pair.generate(IDS, MASK, max_length=7).sequences
    np.testing.assert_array_equal(pair.generate(**batch, max_length=7).sequences, expected)
