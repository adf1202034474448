import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.losses import cross_entropy, token_losses

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
    loss = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, z_loss=z)
    np.testing.assert_allclose(float(loss), by_hand(smoothing, z), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padded_vocabulary_takes_no_part(smoothing):
    padded = np.concatenate([LOGITS, np.full((2, 5, 3), 50.0, np.float32)], axis=-1)
    loss = lambda x: cross_entropy(x, LABELS, vocab_size=7, label_smoothing=smoothing)
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
        float(cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)), float(theirs), rtol=1e-6
    )
