"""`generate`: the host-side call that checks, compiles once per shape, decodes and crops."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.config import GenerationConfig
from seq2seq_jax.decoding.logits import Numbers, Switches
from seq2seq_jax.decoding.sampling import sample
from seq2seq_jax.decoding.search import beam_search
from seq2seq_jax.models.encoder_decoder import EncoderDecoder, check_ids

BUCKET = 32


@struct.dataclass
class GenerateOutput:
    """What was decoded.

    Attributes:
      sequences: int32 [batch * num_return_sequences, length], prompt included, best first within a row; pads behind the
        end, as long as the longest.
      sequences_scores: float32 [batch * num_return_sequences], length penalty applied; None without beams.
      beam_indices: int32 [batch * num_return_sequences, generated], which of the batch * num_beams running hypotheses
        wrote each token, -1 in tails; None without beams.
    """

    sequences: jax.Array
    sequences_scores: jax.Array | None = None
    beam_indices: jax.Array | None = None


def generate(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any,
    attention_mask: Any = None,
    generation_config: GenerationConfig | None = None,
    *,
    rng: jax.Array | None = None,
    decoder_input_ids: Any = None,
    token_type_ids: Any = None,
    **overrides: Any,
) -> GenerateOutput:
    """Decodes a batch (transformers' generate, same settings and meanings).

    Compiles once per model, shapes and switches; numbers such as length_penalty, and lengths within a multiple of 32,
    change nothing. Under `jax.set_mesh` it runs on the mesh that `params` are on.

    Args:
      params: the once-stored tree; its decoding form is made once and kept while the tree lives.
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens. None: all are tokens; pads are not
        guessed, as the two sides' pad tokens may differ.
      generation_config: settings; None: the defaults. overrides: changes to them (num_beams=4, ...).
      rng: a key; needed with do_sample.
      decoder_input_ids: int [batch, p], what the outputs begin with; the start token is put in front if it is missing.

    Raises:
      ValueError: naming the argument at fault and what to give.
    """
    settings = (generation_config or GenerationConfig()).replace(**overrides)
    ids, config = np.asarray(input_ids), model.config
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"input_ids has shape {list(ids.shape)}; give [batch, source] with at least one token")
    check_ids("input_ids", ids, config.encoder.vocab_size)
    start, pad, eos = _tokens(settings, config)
    mask = _mask(ids, attention_mask)
    prompt = _prompt(decoder_input_ids, ids.shape[0], start, config.decoder.vocab_size)
    max_length, min_length = _lengths(settings, prompt.shape[1], ids.shape[1], config)
    _check(settings, rng)

    forced_eos = settings.forced_eos_token_id
    forced_eos = () if forced_eos is None else (forced_eos,) if isinstance(forced_eos, int) else forced_eos
    forced = [i for i in (settings.forced_bos_token_id, *forced_eos) if i is not None]
    check_ids("a forced token", np.array(forced, np.int64), config.decoder.vocab_size)
    switches = Switches(
        vocab_size=config.decoder.vocab_size,
        num_beams=settings.num_beams,
        num_return_sequences=settings.num_return_sequences,
        do_sample=settings.do_sample,
        early_stopping=settings.early_stopping if settings.num_beams > 1 else False,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        repetition_penalty=settings.repetition_penalty != 1.0,
        min_length=min_length > 0 and bool(eos),
        forced_bos=settings.forced_bos_token_id is not None,
        forced_eos=bool(forced_eos),
        temperature=settings.do_sample and settings.temperature != 1.0,
        top_k=settings.do_sample and settings.top_k > 0,
        top_p=settings.do_sample and settings.top_p < 1.0,
    )
    numbers = Numbers(
        max_length=np.int32(max_length),
        min_length=np.int32(min_length),
        pad_id=np.int32(pad),
        eos_ids=np.array(eos, np.int32),
        forced_bos=np.int32(settings.forced_bos_token_id or 0),
        forced_eos=np.array(forced_eos, np.int32),
        length_penalty=np.float32(settings.length_penalty),
        repetition_penalty=np.float32(settings.repetition_penalty),
        temperature=np.float32(settings.temperature),
        top_k=np.int32(settings.top_k),
        top_p=np.float32(settings.top_p),
    )
    bucket = min(-(-max_length // BUCKET) * BUCKET, max(max_length, config.decoder.max_positions))
    types = None if token_type_ids is None else np.asarray(token_type_ids, np.int32)
    decoded = decode(
        model.for_decoding(), switches, bucket, decoding_params(model, params),
        ids.astype(np.int32), mask, types, prompt, numbers, rng if settings.do_sample else None,
    )  # fmt: skip
    return _cropped(decoded, prompt.shape[1], settings)


@functools.partial(jax.jit, static_argnames=("model", "switches", "bucket"))
def decode(model, switches, bucket, params, input_ids, mask, token_type_ids, prompt, numbers, rng):
    """The compiled call: encodes, projects the source once, searches. `decode._cache_size()` counts compilations."""
    variables = {"params": params}
    states = model.apply(variables, input_ids, mask, token_type_ids, method="encode")
    rows = switches.num_beams if switches.num_beams > 1 else switches.num_return_sequences
    cache = model.apply(variables, states, mask, rows, bucket, method="init_cache")

    def step(tokens, cache):
        return model.apply(variables, tokens, cache, method="decode_step")

    if switches.num_beams > 1:
        return beam_search(step, cache, prompt, bucket, switches, numbers)
    return sample(step, cache, prompt, bucket, switches, numbers, rng)


def _cropped(decoded: tuple, prompt: int, settings: GenerationConfig) -> GenerateOutput:
    """The arrays as torch returns them: rows flattened, columns up to the longest."""
    if settings.num_beams == 1:
        sequences, length = decoded
        return GenerateOutput(sequences.reshape(-1, sequences.shape[-1])[:, : int(length)])
    sequences, scores, parents = (array[:, : settings.num_return_sequences] for array in decoded)
    sequences, parents = (array.reshape(-1, array.shape[-1]) for array in (sequences, parents))
    longest = int(jnp.max(jnp.sum(parents >= 0, axis=1)))
    return GenerateOutput(sequences[:, : prompt + longest], scores.reshape(-1), parents[:, prompt : prompt + longest])


def _tokens(settings: GenerationConfig, config) -> tuple[int, int, tuple[int, ...]]:
    """Start, pad and end ids: from the settings, else from the pair's config."""

    def first(*values):
        return next((value for value in values if value is not None), None)

    start = first(settings.decoder_start_token_id, config.decoder_start_token_id, settings.bos_token_id)
    if start is None:
        raise ValueError("decoder_start_token_id is not known; give decoder_start_token_id=...")
    eos = settings.eos_token_id
    if eos is None and not config.eos_token_ids:
        raise ValueError("eos_token_id is not known; give eos_token_id=..., or eos_token_id=() to decode to max_length")
    eos = config.eos_token_ids if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    pad = first(settings.pad_token_id, config.pad_token_id, *eos[:1])
    if pad is None:
        raise ValueError("pad_token_id is not known, and there is no end token to stand in; give pad_token_id=...")
    for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad), ("eos_token_id", list(eos))):
        check_ids(name, np.array(value, np.int64).reshape(-1), config.decoder.vocab_size)
    return start, pad, eos


def _mask(ids: np.ndarray, mask: Any) -> np.ndarray:
    if mask is None:
        return np.ones(ids.shape, bool)
    mask = np.asarray(mask)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)} and input_ids {list(ids.shape)}; make them equal"
        )
    return mask.astype(bool)


def _prompt(given: Any, batch: int, start: int, vocab_size: int) -> np.ndarray:
    """[batch, p], beginning with the start token unless some row already does (torch's rule)."""
    if given is None:
        return np.full((batch, 1), start, np.int32)
    given = np.asarray(given)
    if given.ndim != 2 or given.shape[0] != batch or given.shape[1] == 0:
        raise ValueError(f"decoder_input_ids has shape {list(given.shape)}; give [{batch}, p] with at least one token")
    check_ids("decoder_input_ids", given, vocab_size)
    if (given[:, 0] != start).all():
        given = np.concatenate([np.full((batch, 1), start), given], axis=1)
    return given.astype(np.int32)


def _lengths(settings: GenerationConfig, prompt: int, source: int, config) -> tuple[int, int]:
    """max_length and min_length in tokens, prompt included."""
    if source > config.encoder.max_positions:
        raise ValueError(
            f"the source has {source} tokens and the encoder {config.encoder.max_positions} positions; cut it"
            " (encode(..., max_length=...)), or load with encoder_max_position_embeddings"
        )
    if settings.max_new_tokens is not None:
        longest = prompt + settings.max_new_tokens
    else:
        longest = prompt + 20 if settings.max_length is None else settings.max_length
        if settings.max_length is None:
            longest = max(prompt + 1, min(longest, config.decoder.max_positions))
    if longest <= prompt:
        raise ValueError(
            f"the decoder's prompt has {prompt} tokens and max_length is {longest}; raise max_length, or give"
            " max_new_tokens"
        )
    if longest > config.decoder.max_positions:
        raise ValueError(
            f"max_length {longest} is beyond the decoder's {config.decoder.max_positions} positions; lower max_length"
            " or max_new_tokens, or load with decoder_max_position_embeddings"
        )
    shortest = settings.min_length if settings.min_new_tokens is None else prompt + settings.min_new_tokens
    if shortest > longest:
        name = "min_length" if settings.min_new_tokens is None else "min_new_tokens"
        raise ValueError(
            f"{name} asks for {shortest} tokens and max_length is {longest}; lower {name} or raise the other"
        )
    return longest, shortest


def _check(settings: GenerationConfig, rng: jax.Array | None) -> None:
    """Settings that do not go together."""
    n, beams = settings.num_return_sequences, settings.num_beams
    if settings.do_sample and beams > 1:
        raise ValueError("do_sample with num_beams above 1 (beam-sample) is not built; set num_beams=1")
    if settings.do_sample and rng is None:
        raise ValueError("do_sample draws random numbers; give rng=jax.random.key(...)")
    if beams > 1 and n > beams:
        raise ValueError(f"num_return_sequences {n} is above num_beams {beams}; raise num_beams")
    if beams == 1 and n > 1 and not settings.do_sample:
        raise ValueError(f"greedy search gives one output and num_return_sequences is {n}; set num_beams or do_sample")


# The decoding form of the parameters used last: (model's config, weak references to the leaves, the tree).
_latest: list[tuple[Any, list[weakref.ref], dict]] = []


def decoding_params(model: EncoderDecoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """`model.decoding_params(params)`, made once while the arrays of `params` live; the last tree is remembered."""
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return model.decoding_params(params)
    if _latest:
        config, references, tree = _latest[0]
        same = config == model.config and len(references) == len(leaves)
        if same and all(reference() is leaf for reference, leaf in zip(references, leaves)):
            return tree
    tree = model.decoding_params(params)
    # Arrays that both forms share would keep each other alive; one that only the stored form has tells its end.
    _latest[:] = [
        (model.config, [weakref.ref(leaf, lambda _, latest=_latest: latest.clear()) for leaf in leaves], tree)
    ]
    return tree
