"""FLOPs of a training step by its shapes alone: matrix products and attention, the vocabulary's padding included.

A product of n numbers with a kernel is 2 FLOPs for each pair; its gradients are two more products of that size.
Attention counts all pairs of positions, as the step computes them, masked ones too. Left out: what is not a product
(norms, softmax, the optimizer), tables of positions (DeBERTa's, T5's).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.stack import scan_plan
from seq2seq_jax.weights.params import param_specs, tied_paths


class Product(NamedTuple):
    """A product of the forward pass. path: of its kernel; of attention, of the block. flops: once. again: whether the
    backward pass needs it once more where nothing is kept. attention: it is no kernel's."""

    path: str
    flops: float
    again: bool = False
    attention: bool = False


SOURCE_KERNEL = re.compile(r"/cross_attention/(key|value)/")
MLP_KERNEL = re.compile(r"/mlp/(up|gate)/")
# What share of a product the backward pass computes once more, by remat policy (models/stack.py).
RECOMPUTED = {
    "none": lambda product: 0.0,
    "elementwise": lambda product: 0.0,
    "full": lambda product: product.again,
    "dots": lambda product: 0.0,
    "dots_with_no_batch_dims": lambda product: product.again * product.attention,
    "offload_dots": lambda product: product.again * product.attention,
    "save_attention_out": lambda product: product.again * (0.5 if product.attention else 1.0),  # the scores
    "save_mlp": lambda product: product.again * (MLP_KERNEL.search(product.path) is None),
}


class StepFlops(NamedTuple):
    """useful: forward and backward. done: with what is recomputed."""

    useful: float
    done: float


def products(model: EncoderDecoder, rows: int, source: int, target: int) -> Iterator[Product]:
    """Of a forward pass over `rows` examples of `source` and `target` tokens."""
    pair = model.config
    yield from _side(pair.encoder, "encoder", rows, source, None)
    if pair.has_projection:
        size = pair.encoder.hidden_size * pair.decoder.cross_attention_size
        yield Product("enc_to_dec_proj/kernel", 2.0 * rows * source * size)
    yield from _side(pair.decoder, "decoder", rows, target, source)
    c, tokens = pair.decoder, rows * target
    if c.head_transform or c.head_projection:
        yield Product("decoder/head/transform/kernel", 2.0 * tokens * c.hidden_size * c.head_size)
    yield Product("decoder/head/kernel", 2.0 * tokens * c.head_size * c.padded_vocab_size)


def _side(c: TransformerConfig, role: str, rows: int, length: int, source: int | None) -> Iterator[Product]:
    if c.embedding_size != c.hidden_size:
        size = c.embedding_size * c.hidden_size
        yield Product(f"{role}/embeddings/projection/kernel", 2.0 * rows * length * size)
    plan = scan_plan(c)
    for i in range(c.num_layers):
        layer = i if c.shared_layers is None else c.shared_layers[i]
        # Outside of a scan XLA finds the recomputed products equal to the first ones, and keeps those.
        again = c.shared_layers is not None or plan.start <= i < plan.stop
        yield from _layer(c, i, f"{role}/layers/layers_{layer}", rows, length, source, again)


def _layer(
    c: TransformerConfig, i: int, path: str, rows: int, length: int, source: int | None, again: bool
) -> Iterator[Product]:
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    # The last product of a residual branch is not needed again where no norm reads it.
    ends = again and c.norm_position != "pre"
    crosses = c.cross_attention_size is not None and c.layer(i).cross_attention
    blocks = [("self_attention", length, c.hidden_size)]
    if crosses and c.merged_attention:
        for name in ("key", "value"):
            yield Product(f"{path}/self_attention/{name}/kernel", 2.0 * rows * source * c.hidden_size * keys, again)
        yield Product(f"{path}/self_attention", 4.0 * rows * length * source * queries, again, attention=True)
    elif crosses:
        blocks += [("cross_attention", source, c.cross_attention_size)]
    for block, seen, width in blocks:
        for name, tokens, size in (
            ("query", length, c.hidden_size * queries),
            ("key", seen, width * keys),
            ("value", seen, width * keys),
            ("out", length, queries * c.hidden_size),
        ):
            needed = ends if name == "out" and c.parallel_residual else again
            yield Product(f"{path}/{block}/{name}/kernel", 2.0 * rows * tokens * size, needed)
        yield Product(f"{path}/{block}", 4.0 * rows * length * seen * queries, again, attention=True)
    for name in ("up", "gate", "down") if c.mlp_gated else ("up", "down"):
        flops = 2.0 * rows * length * c.hidden_size * c.intermediate_size
        yield Product(f"{path}/mlp/{name}/kernel", flops, ends if name == "down" else again)


def useful_flops(model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int) -> float:
    """Of one training step, forward and backward, all devices together; what is recomputed is not counted.

    A frozen kernel has no gradient of its own; states have none on a side where nothing is trained below the loss.

    Args:
      frozen: a tree of booleans like the parameters, or None.
    """
    return sum(product.flops * (1 + n) for product, n, _ in _gradients(model, frozen, rows, source, target))


def step_flops(model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int) -> StepFlops:
    """`useful_flops`, and with what the model's remat policy computes again."""
    again, done = RECOMPUTED[model.remat], 0.0
    for product, n, states in _gradients(model, frozen, rows, source, target):
        done += product.flops * (1 + n + states * again(product))
    return StepFlops(useful_flops(model, frozen, rows, source, target), done)


def _gradients(
    model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int
) -> Iterator[tuple[Product, int, bool]]:
    """Each product with how many of its like its gradients take, and whether its states have one."""
    trained = _trained_paths(model, frozen)
    below = {"encoder": any(path.startswith("encoder/") for path in trained), "decoder": bool(trained)}
    # What the decoder's keys and values of the source read.
    below["source"] = below["encoder"] or any(path.startswith("enc_to_dec_proj/") for path in trained)
    for product in products(model, rows, source, target):
        side = "source" if SOURCE_KERNEL.search(product.path) else product.path.split("/")[0]
        states = below.get(side, below["encoder"])
        yield product, 2 * states if product.attention else states + (product.path in trained), states


def _trained_paths(model: EncoderDecoder, frozen: Mapping[str, Any] | None) -> set[str]:
    """Paths of the parameters, layer by layer and tied ones too, that are trained."""
    stored = param_specs(model)
    flat = {} if frozen is None else flatten_dict(frozen, sep="/")
    trained = {each for path, spec in stored.items() if not flat.get(path, False) for each in spec.paths}
    return trained | {path for path, origin in tied_paths(model, stored).items() if origin in trained}
