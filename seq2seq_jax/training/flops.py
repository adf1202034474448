"""FLOPs of training and decoding from shapes alone: matrix products and attention, the vocabulary's padding included.

Each pair of numbers that a product multiplies counts as 2 FLOPs; the gradients of a product are two more products of
the same size. Attention counts all pairs of positions, masked ones too, because the programs compute them. Not counted:
norms, softmax, the optimizer, and position tables (DeBERTa's, T5's).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from seq2seq_jax.config import TransformerConfig
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.param_layouts import scan_plan
from seq2seq_jax.weights.loading import leaves, tied_rows


class Product(NamedTuple):
    """A matrix product of the forward pass.

    Attributes:
      path: of the kernel's parameter, or of the attention block. flops: of one run.
      again: whether the backward pass computes it again if nothing is saved.
      attention: it multiplies states with each other, not with a kernel.
      of_source: it is a decoder's kernel that is applied to the encoder's states.
    """

    path: str
    flops: float
    again: bool = False
    attention: bool = False
    of_source: bool = False


MLP_KERNEL = re.compile(r"/mlp/(up|gate)/")
# The share of a product that the backward pass computes again, by remat policy (config.REMATS).
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
    """useful: forward and backward. done: recomputation included."""

    useful: float
    done: float


def products(model: EncoderDecoder, rows: int, source: int, target: int, cached: int = 0) -> Iterator[Product]:
    """The products of a forward pass over `rows` examples of `source` and `target` tokens, in which the target's tokens
    also attend to `cached` earlier ones, whose keys and values are known."""
    pair = model.config
    yield from _side(pair.encoder, "encoder", rows, source, None, 0)
    if pair.has_projection:
        size = pair.encoder.hidden_size * pair.decoder.cross_attention_size
        yield Product("enc_to_dec_proj/kernel", 2.0 * rows * source * size)
    yield from _side(pair.decoder, "decoder", rows, target, source, cached)
    c, tokens = pair.decoder, rows * target
    if c.head_transform or c.head_projection:
        yield Product("decoder/head/transform/kernel", 2.0 * tokens * c.hidden_size * c.head_size)
    yield Product("decoder/head/kernel", 2.0 * tokens * c.head_size * c.padded_vocab_size)


def _side(
    c: TransformerConfig, role: str, rows: int, length: int, source: int | None, cached: int
) -> Iterator[Product]:
    if c.embedding_size != c.hidden_size:
        size = c.embedding_size * c.hidden_size
        yield Product(f"{role}/embeddings/projection/kernel", 2.0 * rows * length * size)
    plan = scan_plan(c)
    for i in range(c.num_layers):
        layer = i if c.shared_layers is None else c.shared_layers[i]
        # Outside of a scan XLA sees that the recomputed products equal the first ones, and keeps those.
        again = c.shared_layers is not None or plan.start <= i < plan.stop
        yield from _layer(c, i, f"{role}/layers/layers_{layer}", rows, length, source, cached, again)


def _layer(
    c: TransformerConfig, i: int, path: str, rows: int, length: int, source: int | None, cached: int, again: bool
) -> Iterator[Product]:
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    # The last product of a residual branch is not needed again where no norm reads it.
    ends = again and c.norm_position != "pre"
    crosses = c.cross_attention_size is not None and c.layer(i).cross_attention
    # Name, tokens whose keys and values are computed, tokens that are attended to, their width.
    blocks = [("self_attention", length, cached + length, c.hidden_size)]
    if crosses and c.merged_attention:
        flops = 2.0 * rows * source * c.hidden_size * keys
        for name in ("key", "value"):
            yield Product(f"{path}/self_attention/{name}/kernel", flops, again, of_source=True)
        yield Product(f"{path}/self_attention", 4.0 * rows * length * source * queries, again, attention=True)
    elif crosses:
        blocks += [("cross_attention", source, source, c.cross_attention_size)]
    for block, new, seen, width in blocks:
        for name, tokens, size in (
            ("query", length, c.hidden_size * queries),
            ("key", new, width * keys),
            ("value", new, width * keys),
            ("out", length, queries * c.hidden_size),
        ):
            needed = ends if name == "out" and c.parallel_residual else again
            of_source = block == "cross_attention" and name in ("key", "value")
            yield Product(f"{path}/{block}/{name}/kernel", 2.0 * rows * tokens * size, needed, of_source=of_source)
        yield Product(f"{path}/{block}", 4.0 * rows * length * seen * queries, again, attention=True)
    for name in ("up", "gate", "down") if c.mlp_gated else ("up", "down"):
        flops = 2.0 * rows * length * c.hidden_size * c.intermediate_size
        yield Product(f"{path}/mlp/{name}/kernel", flops, ends if name == "down" else again)


def source_products(model: EncoderDecoder, rows: int, source: int) -> Iterator[Product]:
    """The products before the first decoding step: the encoder, and the decoder's keys and values of its states."""
    found = products(model, rows, source, 1)
    return (product for product in found if product.of_source or not product.path.startswith("decoder/"))


def decode_products(model: EncoderDecoder, rows: int, source: int, position: int) -> Iterator[Product]:
    """The products of the decoding step that writes token `position`, from 1, of `rows` hypotheses."""
    found = products(model, rows, source, 1, cached=position - 1)
    return (product for product in found if product.path.startswith("decoder/") and not product.of_source)


def useful_flops(model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int) -> float:
    """FLOPs of one training step, forward and backward, of all devices together; recomputation is not counted.

    A frozen kernel has no gradient. States have none on a side where nothing below them is trained.

    Args:
      frozen: a tree of booleans like the parameters, or None.
    """
    return sum(product.flops * (1 + n) for product, n, _ in _gradients(model, frozen, rows, source, target))


def step_flops(model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int) -> StepFlops:
    """`useful_flops`, and the sum with what the model's remat policy computes again."""
    again, done = RECOMPUTED[model.remat], 0.0
    for product, n, states in _gradients(model, frozen, rows, source, target):
        done += product.flops * (1 + n + states * again(product))
    return StepFlops(useful_flops(model, frozen, rows, source, target), done)


def _gradients(
    model: EncoderDecoder, frozen: Mapping | None, rows: int, source: int, target: int
) -> Iterator[tuple[Product, int, bool]]:
    """Each product, how many products of its size its gradients take, and whether its states have a gradient."""
    trained = _trained_paths(model, frozen)
    below = {"encoder": any(path.startswith("encoder/") for path in trained), "decoder": bool(trained)}
    # The states that the decoder's keys and values of the source are computed from.
    below["source"] = below["encoder"] or any(path.startswith("enc_to_dec_proj/") for path in trained)
    for product in products(model, rows, source, target):
        side = "source" if product.of_source else product.path.split("/")[0]
        states = below.get(side, below["encoder"])
        yield product, 2 * states if product.attention else states + (product.path in trained), states


def _trained_paths(model: EncoderDecoder, frozen: Mapping[str, Any] | None) -> set[str]:
    """Paths of the trained parameters, layer by layer, tied ones included."""
    stored = leaves(model)
    flat = {} if frozen is None else flatten_dict(frozen, sep="/")
    trained = {row for path, leaf in stored.items() if not flat.get(path, False) for row in leaf.rows}
    return trained | {path for path, origin in tied_rows(model, stored).items() if origin in trained}
