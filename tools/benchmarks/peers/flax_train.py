"""Training steps of the Flax class that transformers 4 had, as in its summarisation example."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import FlaxEncoderDecoderModel
from transformers.models.bart.modeling_flax_bart import shift_tokens_right


def load(setting):
    model = FlaxEncoderDecoderModel.from_pretrained(setting["directory"], from_pt=True)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(setting["learning_rate"], weight_decay=0.01))

    def step(params, state, key, batch):
        key, dropout = jax.random.split(key)

        def objective(params):
            labels = batch.pop("labels")
            out = model(**batch, params=params, dropout_rng=dropout, train=True)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out.logits, labels))

        loss, grads = jax.value_and_grad(objective)(params)
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state, key, loss

    params = jax.tree.map(jnp.asarray, model.params)
    held = {"carried": (params, adamw.init(params), jax.random.PRNGKey(0))}
    return {"step": jax.jit(step, donate_argnums=(0, 1)), "model": model, **held}


def train(held, request):
    ids, labels = (np.asarray(request["arrays"][name], np.int32) for name in ("input_ids", "labels"))
    decoder = np.asarray(shift_tokens_right(labels, 0, 1))
    rows = lambda ids: np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    batch = {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": rows(ids), "labels": labels,
        "decoder_input_ids": decoder, "decoder_attention_mask": np.ones_like(decoder),
        "decoder_position_ids": rows(decoder),
    }  # fmt: skip

    def work():
        *held["carried"], loss = held["step"](*held["carried"], dict(batch))
        return {"loss": float(loss)}

    return work


if __name__ == "__main__":
    harness.serve(load, {"train": train}, ("transformers", "jax", "flax", "optax", "numpy"))
