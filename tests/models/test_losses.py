import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.config import LossConfig
from seq2seq_jax.models.losses import chunked_token_losses, cross_entropy, token_losses

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 5, 7)).astype(np.float32) * 3
LABELS = np.array([[0, 6, -100, 3, 2], [-100, -100, 1, 1, 5]])


def by_hand(smoothing=0.0, z=0.0, rows=7):
    total, count = 0.0, 0
    for logit, label in zip(LOGITS[..., :rows].reshape(-1, rows).astype(np.float64), LABELS.ravel()):
        if label == -100:
            continue
        log_normaliser = np.log(np.exp(logit).sum())
        target = np.full(rows, smoothing / rows)
        target[label] += 1 - smoothing
        total += (target * (log_normaliser - logit)).sum() + z * log_normaliser**2
        count += 1
    return total / count


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-2)])
def test_equals_the_sum_by_hand(smoothing, z):
    loss = cross_entropy(LOGITS, LABELS, config=LossConfig(smoothing, z))
    np.testing.assert_allclose(float(loss), by_hand(smoothing, z), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padded_vocabulary_takes_no_part(smoothing):
    padded = np.concatenate([LOGITS, np.full((2, 5, 3), 50.0, np.float32)], axis=-1)
    loss = lambda x: cross_entropy(x, LABELS, config=LossConfig(smoothing), vocab_size=7)
    np.testing.assert_allclose(float(loss(padded)), by_hand(smoothing), rtol=1e-6)
    grad = jax.grad(loss)(jnp.asarray(padded))
    assert np.isfinite(grad).all() and (np.asarray(grad)[..., 7:] == 0).all()


def test_ignored_labels_have_no_loss_and_no_gradient():
    losses = token_losses(LOGITS, LABELS)
    assert (np.asarray(losses)[LABELS == -100] == 0).all()
    grad = jax.grad(lambda x: cross_entropy(x, LABELS))(jnp.asarray(LOGITS))
    assert (np.asarray(grad)[LABELS == -100] == 0).all()


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch(smoothing):
    torch = pytest.importorskip("torch")
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    theirs = loss(torch.tensor(LOGITS).reshape(-1, 7), torch.tensor(LABELS).reshape(-1))
    np.testing.assert_allclose(
        float(cross_entropy(LOGITS, LABELS, config=LossConfig(smoothing))), float(theirs), rtol=1e-6
    )


# 3 rows of 7 tokens, width 6, a vocabulary of 37 padded to 40.
ROWS, LENGTH, WIDTH, VOCAB, PADDED = 3, 7, 6, 37, 40
WEIGHTS = np.linspace(0.5, 1.5, ROWS * LENGTH).astype(np.float32).reshape(ROWS, LENGTH)


def head(dtype=jnp.float32, bias=True):
    """States, kernel, bias and labels; the padded rows are large, so that they show where they take part."""
    draw = np.random.default_rng(3)
    states, kernel = draw.standard_normal((ROWS, LENGTH, WIDTH)), draw.standard_normal((PADDED, WIDTH))
    offset = draw.standard_normal(PADDED)
    kernel[VOCAB:], offset[VOCAB:] = 20.0, 20.0
    labels = draw.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    labels[0, 4:] = labels[2, 0] = -100
    labels[1, :2] = 0, VOCAB - 1
    return jnp.asarray(states, dtype), jnp.asarray(kernel, dtype), jnp.asarray(offset) if bias else None, labels


def plain(states, kernel, bias, labels, config=LossConfig(), softcap=None, **options):
    logits = jnp.einsum("bth,vh->btv", states, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    return token_losses(logits, labels, config, **options)


def values_and_grads(function, states, kernel, bias, labels, **options):
    """Losses, and gradients of a weighted sum of them by states, kernel and bias."""
    weighed = lambda *tree: (jnp.sum((losses := function(*tree, labels, **options)) * WEIGHTS), losses)
    (_, losses), grads = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))(states, kernel, bias)
    return [np.asarray(x, np.float32) for x in (losses, *jax.tree.leaves(grads))]


CHUNKED = {
    "no bias": {"bias": False, "chunk": 4},
    "smoothed, tiles of the vocabulary": {"label_smoothing": 0.1, "chunk": 5, "vocab_chunk": 16},
    "all, tiles of the vocabulary": {
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "softcap": 3.0,
        "chunk": 4,
        "vocab_chunk": 16,
    },
    "bfloat16": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "dtype": jnp.bfloat16, "chunk": 8},
}


@pytest.mark.parametrize("case", CHUNKED)
def test_chunked_equals_plain(case):
    options = {"vocab_size": VOCAB, **CHUNKED[case]}
    inputs = head(options.pop("dtype", jnp.float32), options.pop("bias", True))
    names = {field.name for field in dataclasses.fields(LossConfig)}
    options["config"] = LossConfig(**{name: options.pop(name) for name in names & set(options)})
    found = values_and_grads(chunked_token_losses, *inputs, **options)
    expected = values_and_grads(plain, *inputs, **options)
    for a, b in zip(found, expected, strict=True):
        tolerance = 2e-2 if case == "bfloat16" else 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    assert (found[0][inputs[3] == -100] == 0).all() and (found[2][VOCAB:] == 0).all()


def test_chunked_logits_never_exist_whole():
    """No array of the compiled gradient has as many elements as the logits, and those of the plain one do."""
    states, kernel, bias, labels = head()
    states, labels = jnp.tile(states, (4, 8, 1)), np.tile(labels, (4, 8))

    def largest(function, **options):
        sums = lambda *tree: jnp.sum(function(*tree, labels, vocab_size=VOCAB, **options))
        text = jax.jit(jax.value_and_grad(sums, argnums=(0, 1, 2))).lower(states, kernel, bias).compile().as_text()
        shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", text)
        return max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)

    assert largest(plain) >= labels.size * VOCAB
    assert largest(chunked_token_losses, config=LossConfig(chunk=32)) == max(labels.size * WIDTH, 32 * PADDED)
    assert largest(chunked_token_losses, config=LossConfig(chunk=32, vocab_chunk=10)) <= labels.size * WIDTH


def test_bad_chunks_and_labels():
    states, kernel, bias, labels = head()
    with pytest.raises(ValueError, match="vocab_chunk is 0; give a whole number from 1 up"):
        LossConfig(chunk=1, vocab_chunk=0)
    with pytest.raises(ValueError, match="vocab_chunk is 7, and chunk is not given; give both"):
        LossConfig(vocab_chunk=7)
    labels[0, 0] = VOCAB
    losses = chunked_token_losses(states, kernel, bias, labels, LossConfig(chunk=8), vocab_size=VOCAB)
    assert np.isnan(losses[0, 0]) and np.isfinite(losses).sum() == labels.size - 1
