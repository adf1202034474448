"""`generate`: the host-side call that checks, chooses a strategy, decodes and crops."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig
from seq2seq_jax.decoding import engine
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.beam_search import BeamSearch
from seq2seq_jax.decoding.constrained import ConstrainedBeamSearch
from seq2seq_jax.decoding.contrastive import ContrastiveSearch
from seq2seq_jax.decoding.diverse import DiverseBeamSearch
from seq2seq_jax.decoding.logits import Criterion, Processor
from seq2seq_jax.decoding.lookup import PromptLookup
from seq2seq_jax.decoding.loop import Rules, Source, Strategy
from seq2seq_jax.decoding.prefix import AllowedFunction, serving
from seq2seq_jax.decoding.processor_list import automata_of, criteria_of, limits_rows, processors_of, warpers_of
from seq2seq_jax.decoding.sampling import Sampling
from seq2seq_jax.models.encoder_decoder import EncoderDecoder
from seq2seq_jax.models.inputs import check_encoder_inputs
from seq2seq_jax.models.targets import check_ids, shape_of
from seq2seq_jax.models.transformer import check_length


@struct.dataclass
class GenerateOutput:
    """What was decoded.

    Attributes:
      sequences: int32 [batch * num_return_sequences, length], prompt included; pads behind the end, as long as the
        longest. Within a row, beams best first, samples as they were drawn unless best_first.
      sequences_scores: float32 [batch * num_return_sequences]: summed log-probabilities of the tokens written, after
        processors, over count ** length_penalty. Of samples these are the model's, as processors leave them and
        normalised again, before temperature and cut-offs. None without beams, do_sample and output_scores.
      beam_indices: int32 [batch * num_return_sequences, generated], which of the batch * num_beams running hypotheses
        wrote each token, -1 in tails; None without beams.
      scores: float32 [generated, batch * hypotheses, vocab_size], what each choice was made from (of the running
        hypotheses, as in torch); None unless output_scores. logits: likewise, raw; None unless output_logits.
      constraints_met: bool [batch * num_return_sequences], whether an output holds all of force_words_ids; those that
        do not come last. None without force_words_ids.
    """

    sequences: jax.Array
    sequences_scores: jax.Array | None = None
    beam_indices: jax.Array | None = None
    scores: jax.Array | None = None
    logits: jax.Array | None = None
    constraints_met: jax.Array | None = None


def generate(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any = None,
    attention_mask: Any = None,
    generation_config: GenerationConfig | None = None,
    *,
    rng: jax.Array | None = None,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    token_type_ids: Any = None,
    encoder_outputs: Any = None,
    inputs_embeds: Any = None,
    processors: Sequence[Processor] = (),
    criteria: Sequence[Criterion] = (),
    allowed: TokenTrie | None = None,
    prefix_allowed_tokens_fn: AllowedFunction | TokenTrie | None = None,
    tokenizer: Any = None,
    callback: Callable[[np.ndarray, int], None] | None = None,
    compact: bool = False,
    best_first: bool = False,
    **overrides: Any,
) -> GenerateOutput:
    """Decodes a batch (transformers' generate, same settings and meanings).

    Compiles once per model, shapes and kinds of settings; numbers such as length_penalty, and lengths within a multiple
    of 32, change nothing. Under `jax.set_mesh` it runs on the mesh that `params` are on.

    Args:
      params: the once-stored tree, whose decoding form is made once and kept while the tree lives; or, of a model in
        decoding form (`Pretrained.for_decoding`), that form.
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens. None: all are tokens; pads are not
        guessed, as the two sides' pad tokens may differ.
      encoder_outputs, inputs_embeds: in place of input_ids, as in the model's call. With encoder_outputs the encoder is
        not run, and input_ids are for what reads the source's tokens (`SOURCE_READERS`), which else cannot be had.
      generation_config: settings; None: the defaults. overrides: changes to them (num_beams=4, ...).
      rng: a key; needed with do_sample.
      decoder_input_ids: int [batch, p], what the outputs begin with; the start token is put in front if it is missing.
      decoder_attention_mask: [batch, p], 0 on pads, which stand before a shorter prompt, 1 on its tokens. Each row is
        decoded as it would be alone: pads are not seen, positions begin behind them, a row's start token stands there,
        and max_length and min_length do not count them. (In torch they do, and its pairs count positions from the
        pads.) Columns that are pads in all rows are dropped. A row alone and in a batch gives the same samples only
        with the same row number.
      processors: of your own, after those of the settings; criteria: of your own, for ends (decoding/logits.py).
      allowed: the only continuations of the prompt that there may be, compiled.
      prefix_allowed_tokens_fn: torch's: (row of the batch, ids int32 [length] so far, prompt without pads included) to
        the ids that may follow. It is asked on the host for every hypothesis at every step, which is slow: a
        TokenTrie in its place is compiled, as `allowed` is. It must depend on its arguments only, and the mesh be one
        process's.
      tokenizer: of the target, ours or a fast one of transformers; needed with stop_strings and
        no_repeat_word_ngram_size.
      callback: is given the sequences so far, int32 [batch, n, capacity], and how many of their tokens count, every few
        tokens (greedy search and sampling).
      compact: rows that are done leave the batch; for corpora, since more shapes are compiled.
      best_first: the samples of a row are put in the order of their sequences_scores.

    Raises:
      ValueError: naming the argument at fault and what to give.
    """
    settings = (generation_config or GenerationConfig()).replace(**overrides)
    allowed, prefix_allowed_tokens_fn = _trie_or_function(allowed, prefix_allowed_tokens_fn)
    given = {"processors": processors, "criteria": criteria, "tokenizer": tokenizer, "allowed": allowed, "rng": rng}
    given |= {"encoder_outputs": encoder_outputs, "inputs_embeds": inputs_embeds}
    _check(settings, rng, callback, model.config)
    inputs = (input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, token_type_ids)
    with serving(prefix_allowed_tokens_fn) as asked:
        search = _search(model, params, *inputs, settings, asked=asked, **given)
        compact = compact and not search.strategy.kept
        decoded = engine.decode(search, compact=compact, max_time=settings.max_time, callback=callback)
    if best_first and settings.do_sample:
        order = np.argsort(-decoded["scores"], axis=1, kind="stable")
        at = lambda array: np.take_along_axis(array, order.reshape(*order.shape, *(1,) * (array.ndim - 2)), axis=1)
        decoded = {name: array if array.ndim == 1 else at(array) for name, array in decoded.items()}
    return _cropped(decoded, search.prompt.shape[1], settings, model.config.decoder.vocab_size)


def compile_generate(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    shape: tuple[int, int],
    generation_config: GenerationConfig | None = None,
    *,
    rng: jax.Array | None = None,
    **given: Any,
) -> None:
    """Compiles what `generate` runs for input_ids of `shape` [batch, source] and these settings, and runs nothing.

    Threads may do it for shapes to come. A cache that has to grow, and a batch that rows leave, compile when they do.

    Args:
      given: processors, criteria, tokenizer and allowed of the call, if it has them.

    Raises:
      ValueError: as `generate`.
    """
    settings, ids = (generation_config or GenerationConfig()).replace(), np.zeros(shape, np.int32)
    _check(settings, rng, None, model.config)
    engine.compile_search(_search(model, params, ids, None, None, None, None, settings, rng=rng, **given))


def _search(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    input_ids: Any,
    attention_mask: Any,
    decoder_input_ids: Any,
    decoder_attention_mask: Any,
    token_type_ids: Any,
    settings: GenerationConfig,
    *,
    encoder_outputs: Any = None,
    inputs_embeds: Any = None,
    processors: Sequence[Processor] = (),
    **given: Any,
) -> engine.Search:
    """What the engine runs, of checked arguments."""
    config, inputs = model.config, {"token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
    source, encoder_inputs = _source(config, settings, input_ids, attention_mask, encoder_outputs, **inputs)
    start, pad, _ = _tokens(settings, config)
    batch, length = source.mask.shape
    prompt, begins = _prompt(decoder_input_ids, decoder_attention_mask, batch, start, pad, config)
    return engine.Search(
        model.for_decoding(),
        strategy_of(settings),
        decoding_params(model, params),
        source.replace(begins=begins),
        encoder_inputs,
        prompt,
        rules_of(settings, config, prompt.shape[1], length, begins=begins, custom=processors, **given),
    )


def strategy_of(settings: GenerationConfig) -> Strategy:
    """How the settings ask to search."""
    s = settings
    kept = tuple(name for name in ("logits", "scores") if getattr(s, f"output_{name}"))
    beams = {"early_stopping": s.early_stopping, "covered": s.coverage_penalty > 0, "kept": kept}
    if s.num_beam_groups > 1:
        return DiverseBeamSearch(s.num_beams, s.num_beam_groups, **beams)
    if s.force_words_ids:
        return ConstrainedBeamSearch(s.num_beams, **beams)
    if s.num_beams > 1:
        return BeamSearch(s.num_beams, do_sample=s.do_sample, **beams)
    if s.penalty_alpha:
        return ContrastiveSearch(s.top_k)
    if s.prompt_lookup_num_tokens:
        return PromptLookup(s.prompt_lookup_num_tokens, s.max_matching_ngram_size)
    return Sampling(s.num_return_sequences, do_sample=s.do_sample, kept=kept)


def rules_of(
    settings: GenerationConfig,
    config: EncoderDecoderConfig,
    prompt: int,
    source: int,
    *,
    begins: np.ndarray | None = None,
    custom: Sequence[Processor] = (),
    criteria: Sequence[Criterion] = (),
    tokenizer: Any = None,
    allowed: TokenTrie | None = None,
    asked: np.int32 | None = None,
    rng: jax.Array | None = None,
) -> Rules:
    """What a search over `source` tokens goes by, whose outputs begin with `prompt` tokens, those of a row behind
    `begins` [batch] pads (None: there are none); see `generate`."""
    _, pad, eos = _tokens(settings, config)
    max_length, min_length = _lengths(settings, prompt, source, config)
    common = {"vocab_size": config.decoder.vocab_size, "eos": eos, "tokenizer": tokenizer, "allowed": allowed}
    pads = 0 if begins is None else int(begins.max())
    lengths = {"prompt_length": prompt, "min_length": min_length, "max_length": max_length, "pads": pads}
    own = pads > 0 and limits_rows(settings)
    return Rules(
        max_length=np.int32(max_length + own * pads),
        own_length=np.int32(max_length) if own else None,
        prompt_length=np.int32(prompt),
        pad_id=np.int32(pad),
        eos_ids=np.array(eos, np.int32),
        processors=processors_of(settings, custom=custom, asked=asked, **lengths, **common),
        warpers=warpers_of(settings, beams=settings.num_beams, eos=eos),
        criteria=(*criteria_of(settings), *criteria),
        automata=automata_of(settings, **common),
        rng=rng if settings.do_sample else None,
        numbers=_numbers(settings),
    )


def _numbers(settings: GenerationConfig) -> dict[str, np.ndarray]:
    """Those that the strategies read."""
    names = []
    if settings.num_beams > 1 or settings.do_sample or settings.output_scores or settings.output_logits:
        names.append("length_penalty" if settings.gnmt_length_penalty is None else "gnmt_length_penalty")
    names += [n for n in ("coverage_penalty", "diversity_penalty", "penalty_alpha") if getattr(settings, n)]
    return {name: np.float32(getattr(settings, name)) for name in names}


def _cropped(decoded: dict[str, np.ndarray], prompt: int, settings: GenerationConfig, vocab_size: int):
    """The arrays as torch returns them: rows flattened, columns up to the longest."""
    n = settings.num_return_sequences
    sequences = decoded["sequences"][:, :n]
    sequences = sequences.reshape(-1, sequences.shape[-1])
    parents = None
    scores = jnp.asarray(decoded["scores"][:, :n].reshape(-1)) if "scores" in decoded else None
    if "parents" in decoded:
        parents = decoded["parents"][:, :n].reshape(len(sequences), -1)
        longest = prompt + int(np.max(np.sum(parents >= 0, axis=1)))
        parents = jnp.asarray(parents[:, prompt:longest])
    else:
        longest = int(decoded["lengths"].max())
    kept = {}
    for name in ("scores", "logits"):
        if f"kept_{name}" in decoded:
            array = decoded[f"kept_{name}"][:, :, prompt:longest, :vocab_size]
            kept[name] = jnp.asarray(array.transpose(2, 0, 1, 3).reshape(longest - prompt, -1, vocab_size))
    if "met" in decoded:
        kept["constraints_met"] = jnp.asarray(decoded["met"][:, :n].reshape(-1))
    return GenerateOutput(jnp.asarray(sequences[:, :longest]), scores, parents, **kept)


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


# Settings that read the source's tokens.
SOURCE_READERS = {
    "encoder_repetition_penalty": lambda value: value != 1.0,
    "encoder_no_repeat_ngram_size": bool,
    "prompt_lookup_num_tokens": lambda value: value is not None,
}


def _source(
    config: EncoderDecoderConfig, settings: GenerationConfig, ids: Any, mask: Any, outputs: Any, **more: Any
) -> tuple[Source, dict[str, Any]]:
    """What the rows decode, and what the encoder takes beside ids and mask: `more`, or its outputs."""
    if ids is not None and (len(shape := shape_of("input_ids", ids)) != 2 or 0 in shape):
        raise ValueError(f"input_ids has shape {list(shape)}; give [batch, source] with at least one token")
    arguments = {"embeds" if name == "inputs_embeds" else name: array for name, array in more.items()}
    (batch, length), states = check_encoder_inputs(config.encoder, outputs, ids=ids, attention_mask=mask, **arguments)
    if ids is None:
        for name, reads in SOURCE_READERS.items():
            if reads(getattr(settings, name)):
                raise ValueError(f"{name} reads the source's tokens; give input_ids, or leave it out")
    mask = np.ones((batch, length), bool) if mask is None else np.asarray(mask).astype(bool)
    ids = None if ids is None else np.asarray(ids).astype(np.int32)
    more |= {"encoder_outputs": states}
    source = Source(ids, mask, np.arange(batch, dtype=np.int32))
    arrays = {name: a if isinstance(a, jax.Array) else np.asarray(a) for name, a in more.items() if a is not None}
    return source, arrays


def _prompt(given: Any, mask: Any, batch: int, start: int, pad: int, config: EncoderDecoderConfig) -> tuple:
    """int32 [batch, p], beginning with the start token unless some row already does (torch's rule), and None. Or, where
    the mask tells of pads, each row behind its pads with a start token of its own, and where they begin [batch]."""
    if given is None:
        if mask is not None:
            raise ValueError("decoder_attention_mask says where decoder_input_ids have tokens; give these too")
        return np.full((batch, 1), start, np.int32), None
    shape_of("decoder_input_ids", given)
    given = np.asarray(given)
    if given.ndim != 2 or given.shape[0] != batch or given.shape[1] == 0:
        raise ValueError(f"decoder_input_ids has shape {list(given.shape)}; give [{batch}, p] with at least one token")
    check_ids("decoder_input_ids", given, config.decoder.vocab_size)
    if mask is not None and shape_of("decoder_attention_mask", mask) and not np.all(mask):
        mask = np.asarray(mask)
        if mask.shape != given.shape:
            raise ValueError(
                f"decoder_attention_mask has shape {list(mask.shape)} and decoder_input_ids {list(given.shape)}; make"
                " them equal"
            )
        mask = mask.astype(bool)
        wrong = np.flatnonzero(~mask[:, -1] | np.any(mask[:, :-1] & ~mask[:, 1:], axis=1))
        if wrong.size:
            raise ValueError(
                f"row {wrong[0]} of decoder_attention_mask is {mask[wrong[0]].astype(int).tolist()}; pads stand before"
                " the prompt, so give 0s, then at least one 1"
            )
        rows = [row[real] for row, real in zip(given, mask)]
        rows = [row if row[0] == start else np.concatenate([[start], row]) for row in rows]
        longest = max(map(len, rows))
        begins = np.array([longest - len(row) for row in rows], np.int32)
        prompt = np.stack([np.pad(row, (n, 0), constant_values=pad) for row, n in zip(rows, begins)])
        return prompt.astype(np.int32), begins if begins.any() else None
    if (given[:, 0] != start).all():
        given = np.concatenate([np.full((batch, 1), start), given], axis=1)
    return given.astype(np.int32), None


def _lengths(settings: GenerationConfig, prompt: int, source: int, config) -> tuple[int, int]:
    """max_length and min_length in tokens, prompt included."""
    if source > config.encoder.max_positions:
        raise ValueError(
            f"the source has {source} tokens and the encoder {config.encoder.max_positions} positions; cut it"
            " (tokenizer(texts, max_length=...)), or load with encoder_max_position_embeddings"
        )
    if settings.max_new_tokens is not None:
        longest = prompt + settings.max_new_tokens
    else:
        longest = prompt + 20 if settings.max_length is None else settings.max_length
        if settings.max_length is None:
            most = config.decoder.length_limit or (config.decoder.max_positions, "")
            longest = max(prompt + 1, min(longest, config.decoder.max_positions, most[0]))
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
    check_length(config.decoder, longest)
    shortest = settings.min_length if settings.min_new_tokens is None else prompt + settings.min_new_tokens
    if shortest > longest:
        name = "min_length" if settings.min_new_tokens is None else "min_new_tokens"
        raise ValueError(
            f"{name} asks for {shortest} tokens and max_length is {longest}; lower {name} or raise the other"
        )
    return longest, shortest


def _check(settings: GenerationConfig, rng: jax.Array | None, callback: Callable | None, config) -> None:
    """Settings that do not go together."""
    s, beams = settings, settings.num_beams

    def check(right: bool, message: str) -> None:
        if not right:
            raise ValueError(message)

    ways = {
        "num_beam_groups": s.num_beam_groups > 1,
        "force_words_ids": bool(s.force_words_ids),
        "penalty_alpha": bool(s.penalty_alpha),
        "prompt_lookup_num_tokens": s.prompt_lookup_num_tokens is not None,
        "do_sample": s.do_sample,
    }
    asked = [name for name, on in ways.items() if on]
    check(len(asked) < 2, f"{' and '.join(asked)} are different ways to search; give one of them")
    check(not s.do_sample or rng is not None, "do_sample draws random numbers; give rng=jax.random.key(...)")
    n = s.num_return_sequences
    check(beams == 1 or n <= beams, f"num_return_sequences {n} is above num_beams {beams}; raise num_beams")
    check(
        beams > 1 or n == 1 or s.do_sample,
        f"greedy search gives one output and num_return_sequences is {n}; set num_beams or do_sample",
    )
    for name in ("penalty_alpha", "prompt_lookup_num_tokens"):
        check(not ways[name] or beams == 1, f"{name} goes without beams and num_beams is {beams}; set num_beams=1")
        kept = [f"output_{part}" for part in ("scores", "logits") if getattr(s, f"output_{part}")]
        check(not ways[name] or not kept, f"{name} records no {' and '.join(kept)}; leave one of them out")
    check(not s.force_words_ids or beams > 1, "force_words_ids needs several beams; set num_beams")
    check(not s.penalty_alpha or s.top_k > 1, f"penalty_alpha chooses among top_k tokens and top_k is {s.top_k}")
    same = config.encoder.vocab_size == config.decoder.vocab_size
    check(
        not ways["prompt_lookup_num_tokens"] or same,
        "prompt_lookup_num_tokens copies ids from the source, and the two sides have vocabularies of"
        f" {config.encoder.vocab_size} and {config.decoder.vocab_size}; leave it out",
    )
    check(
        callback is None or beams == 1,
        f"callback shows outputs while they grow, and {beams} beams have none yet; set num_beams=1",
    )
    covered = s.coverage_penalty > 0
    check(
        not covered or beams > 1, "coverage_penalty compares beams and num_beams is 1; set num_beams, or leave it out"
    )


def _trie_or_function(trie: TokenTrie | None, function: AllowedFunction | TokenTrie | None) -> tuple:
    """What is compiled, and what is asked on the host: a trie given for a function is compiled."""
    if isinstance(function, TokenTrie):
        if trie is not None:
            raise ValueError("allowed and prefix_allowed_tokens_fn are both tries; give one of them")
        return function, None
    if function is not None and jax.process_count() > 1:
        raise ValueError(
            f"prefix_allowed_tokens_fn is asked by one process, and there are {jax.process_count()}; give a TokenTrie"
            " as allowed="
        )
    return trie, function


# The decoding form of the parameters used last: (model, weak references to the leaves, the tree).
_latest: list[tuple[Any, list[weakref.ref], dict]] = []
_lock = threading.RLock()


def decoding_params(model: EncoderDecoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """`model.decoding_params(params)`, made once while the arrays of `params` live; the last tree is remembered. Those
    of a model in decoding form are in that form."""
    if model.unrolled:
        return params
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return model.decoding_params(params)
    with _lock:
        if _latest:
            known, references, tree = _latest[0]
            same = known == model and len(references) == len(leaves)
            if same and all(reference() is leaf for reference, leaf in zip(references, leaves)):
                return tree
        tree = model.decoding_params(params)
        # Arrays that both forms share would keep each other alive; one that only the stored form has tells its end.
        _latest[:] = [(model, [weakref.ref(leaf, lambda _, latest=_latest: latest.clear()) for leaf in leaves], tree)]
        return tree
