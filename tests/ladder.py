"""The rungs on which a pair is compared with torch: logits, loss, gradients, updates, tokens.

Each takes our pair and torch's results as numpy arrays, live ones or the committed ones
(tests/parity/torch_models.py makes them).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seq2seq_jax.models.losses import IGNORED
from seq2seq_jax.weights.export import torch_tensors

SGD_RATE, ADAMW = 0.1, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.98, "eps": 1e-3, "weight_decay": 0.01}
BEAM = {"num_beams": 4, "length_penalty": 1.3, "early_stopping": True, "num_return_sequences": 2}
MAX_LENGTH = 12


def random_batch(vocabularies, *, seed=0, rows=3, source=7, target=5):
    """Inputs with padding on the right of one row and on the left of another, and labels with an early end.

    The first row holds the pad token where it is seen, on either side: its rows in the tables have no gradient.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, vocabularies[0], (rows, source))
    mask = np.ones_like(ids)
    if rows > 2 and source > 4:
        mask[1, source - 2 :] = 0
        mask[2, :2] = 0
    labels = rng.integers(3, vocabularies[1], (rows, target))
    if rows > 1:
        labels[1, target // 2 + 1 :] = IGNORED
    if source > 2 and target > 2:
        ids[0, 1] = labels[0, 1] = 0
    return {"input_ids": np.where(mask == 1, ids, 0), "attention_mask": mask, "labels": labels}


def batch_of(results):
    return {name: np.asarray(results[name]) for name in ("input_ids", "attention_mask", "labels")}


@functools.lru_cache(maxsize=4)
def _forward(model):
    def run(params, batch):
        out = model.apply({"params": params}, **batch)
        return out.loss, out.logits

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def forward(pair, batch):
    """Loss, logits and the gradient tree."""
    (loss, logits), grads = _forward(pair.model)(pair.params, batch)
    return float(loss), np.asarray(logits), grads


def by_torch_name(pair, tree):
    return {name: np.asarray(make()) for name, make in torch_tensors(pair.model, tree)}


def close(ours, theirs, tolerance, what):
    """The largest difference over the largest value of torch's."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    assert np.isfinite(ours).all(), what
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= tolerance, f"{what}: differs by {difference:.1e} of the largest value"


def check_forward(pair, results):
    loss, logits, _ = forward(pair, batch_of(results))
    close(logits, results["logits"], 1e-5, "logits")
    close(loss, results["loss"], 1e-5, "loss")


def check_gradients(pair, results):
    _, _, grads = forward(pair, batch_of(results))
    ours = by_torch_name(pair, grads)
    theirs = {name.removeprefix("grad:"): value for name, value in results.items() if name.startswith("grad:")}
    assert theirs and set(theirs) <= set(ours), set(theirs) - set(ours)
    parts = ("self_attn",) if pair.config.decoder.merged_attention else ("cross", "encoder_attn", "EncDec")
    assert any(part in name for name in theirs for part in parts)
    for name, g in theirs.items():
        if is_key_bias(name) and np.abs(g).max() < 1e-6:
            continue  # without rotary positions its gradient is zero but for rounding
        if "c_attn.bias" in name:
            g, mine = without_keys(name, g), without_keys(name, ours[name])
        else:
            mine = ours[name]
        assert np.abs(g).max() > 0, f"torch's gradient of {name} is zero, so it shows nothing"
        close(mine, g, 1e-4, f"gradient of {name}")


def is_key_bias(name):
    return name.endswith((".key.bias", ".k_proj.bias", ".k_lin.bias", ".attn.k.bias", "key_proj.bias"))


def without_keys(name, fused):
    """GPT-2's fused bias without the part of the keys."""
    parts = np.split(fused, 2 if "crossattention" in name else 3)
    del parts[-2]
    return np.concatenate(parts)


def check_updates(pair, results):
    """One step of SGD, and one of AdamW with an eps that keeps it from amplifying rounding."""
    _, _, grads = forward(pair, batch_of(results))
    before = by_torch_name(pair, pair.params)
    for kind, tx in (("sgd", optax.sgd(SGD_RATE)), ("adamw", optax.adamw(**ADAMW))):
        updates, _ = tx.update(grads, tx.init(pair.params), pair.params)
        ours = by_torch_name(pair, optax.apply_updates(pair.params, updates))
        for name in (n.removeprefix("grad:") for n in results if n.startswith("grad:")):
            tolerance = 1e-4
            if kind == "sgd":
                grad = results[f"grad:{name}"]
                theirs = before[name] - SGD_RATE * grad
                # Exact but for what `check_gradients` lets pass, which an array of small values shows.
                tolerance = 1e-6 + 1e-4 * SGD_RATE * np.abs(grad).max() / np.abs(theirs).max()
            elif is_key_bias(name) or "c_attn.bias" in name:
                continue
            else:
                theirs = results[f"adamw:{name}"]
                moved = np.abs(theirs - before[name]).max()
                assert moved > 1e-4, f"AdamW does not move {name}"
                close(ours[name] - before[name], theirs - before[name], 1e-3, f"AdamW's step on {name}")
            close(ours[name], theirs, tolerance, f"{name} after {kind}")


def until_end(sequences, eos, pad):
    """Behind the first end token (the prompt's place is exempt) everything is pad, as ours is."""
    out = np.array(sequences)
    for row in out:
        ends = [i for i in range(1, len(row)) if row[i] in eos]
        if ends:
            row[ends[0] + 1 :] = pad
    return out


def check_tokens(pair, results, eos=(2,), pad=0):
    batch = batch_of(results)
    inputs = (batch["input_ids"], batch["attention_mask"])
    greedy = pair.generate(*inputs, max_length=MAX_LENGTH, num_beams=1)
    np.testing.assert_array_equal(np.asarray(greedy.sequences), until_end(results["greedy"], eos, pad))
    beam = pair.generate(*inputs, max_length=MAX_LENGTH, **BEAM)
    np.testing.assert_array_equal(np.asarray(beam.sequences), until_end(results["beam"], eos, pad))
    close(beam.sequences_scores, results["beam_scores"], 1e-5, "beam scores")


def check_cache(pair, batch):
    """The logits of decoding token by token are those of one pass over all of them."""
    source, mask = batch["input_ids"], batch["attention_mask"]
    tokens = np.where(batch["labels"] < 0, 5, batch["labels"])
    pad = pair.config.decoder.position_pad_id
    if pad is not None:  # behind a pad token torch counts positions in one way with a cache, in another without
        tokens = np.where(tokens == pad, pad + 1, tokens)

    @jax.jit
    def whole(params):
        return pair.model.apply({"params": params}, source, mask, decoder_input_ids=tokens).logits

    @jax.jit
    def by_token(params):
        model, variables = pair.model.for_decoding(), {"params": params}
        states = model.apply(variables, source, mask, method="encode")
        cache = model.apply(variables, states, mask, 1, tokens.shape[1], method="init_cache")

        def step(cache, now):
            logits, cache = model.apply(variables, now[:, None, None], cache, method="decode_step")
            return cache, logits[:, 0]

        return jnp.moveaxis(jax.lax.scan(step, cache, jnp.asarray(tokens.T))[1], 0, 1)

    one_by_one = by_token(pair.model.decoding_params(pair.params))
    expected = np.asarray(whole(pair.params))
    close(np.asarray(one_by_one)[..., : expected.shape[-1]], expected, 1e-5, "logits with a cache")


RUNGS = (check_forward, check_gradients, check_updates, check_tokens)
