"""`generate`: checks its arguments, chooses a strategy, decodes and crops the results."""

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
from seq2seq_jax.decoding.arguments import (
    check_settings,
    generation_settings,
    length_limits,
    make_prompt,
    make_source,
    special_tokens,
    trie_or_function,
)
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.beam_search import BeamSearch
from seq2seq_jax.decoding.build_processors import (
    build_automata,
    build_criteria,
    build_processors,
    build_warpers,
    length_excludes_pads,
)
from seq2seq_jax.decoding.constrained_beam_search import ConstrainedBeamSearch
from seq2seq_jax.decoding.context import Criterion, Processor, as_pytrees
from seq2seq_jax.decoding.contrastive_search import ContrastiveSearch
from seq2seq_jax.decoding.decode_loop import SearchParams, Strategy
from seq2seq_jax.decoding.diverse_beam_search import DiverseBeamSearch
from seq2seq_jax.decoding.prefix_function import PrefixFunction, register
from seq2seq_jax.decoding.prompt_lookup import PromptLookup
from seq2seq_jax.decoding.sampling import Sampling
from seq2seq_jax.models.encoder_decoder import EncoderDecoder


@struct.dataclass
class GenerateOutput:
    """The outputs of `generate`, by transformers' names.

    Attributes:
      sequences: int32 [batch * num_return_sequences, length], prompt included, as long as the longest, pads behind the
        end. Within a row, beams are best first, and samples in the order of drawing unless best_first.
      sequences_scores: float32 [batch * num_return_sequences]: summed log-probabilities of the generated tokens, after
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
    generation_config: GenerationConfig | Mapping[str, Any] | Any = None,
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
    prefix_allowed_tokens_fn: PrefixFunction | TokenTrie | None = None,
    tokenizer: Any = None,
    callback: Callable[[np.ndarray, int], None] | None = None,
    compact: bool = False,
    best_first: bool = False,
    return_dict_in_generate: bool | None = None,
    **overrides: Any,
) -> GenerateOutput | jax.Array:
    """Decodes a batch (transformers' generate, same settings and meanings).

    Compiles once per model, shapes and types of settings; numbers such as length_penalty, and lengths within a multiple
    of 32, compile nothing. Under `jax.set_mesh` it runs on the mesh that `params` are on. A transformers BatchEncoding
    is given as `**batch`.

    Args:
      params: the once-stored tree, whose decoding form is made once and kept while the tree lives; or, of a model in
        decoding form (`Pretrained.for_decoding`), that form.
      input_ids: int [batch, source]. attention_mask: [batch, source], 1 on tokens. None: all are tokens; pads are not
        guessed, as the two sides' pad tokens may differ.
      encoder_outputs, inputs_embeds: in place of input_ids, as in the model's call. With encoder_outputs the encoder is
        not run; input_ids are then needed only for settings that read the source's tokens (`SOURCE_READERS`).
      generation_config: ours, transformers' or a mapping, see `generation_settings`; None: the defaults. overrides:
        changes to it (num_beams=4, ...).
      rng: a key; needed with do_sample.
      decoder_input_ids: int [batch, p], what the outputs begin with; the start token is put in front if it is missing.
      decoder_attention_mask: [batch, p], 0 on pads, which stand before a shorter prompt, 1 on its tokens. Each row is
        decoded as it would be alone: pads are not seen, positions begin behind them, a row's start token stands there,
        and max_length and min_length do not count them. (In torch they do, and its pairs count positions from the
        pads.) Columns that are pads in all rows are dropped. A row alone and in a batch gives the same samples only
        with the same row number.
      processors: functions (scores float32 [batch, n, vocab], DecodingContext) -> scores, applied in jax after those of
        the settings. criteria: functions (DecodingContext) -> bool [batch, n], True where a sequence ends with its last
        token. Both are traced: each new function compiles anew, so define it once, outside of the call. A
        flax.struct.dataclass with `__call__`, or a jax.tree_util.Partial, has numbers that may change without that.
      allowed: the only continuations of the prompt that there may be, compiled.
      prefix_allowed_tokens_fn: torch's: (row of the batch, ids int32 [length] so far, prompt without pads included) to
        the ids that may follow. It is called on the host for every hypothesis at every step, which is slow: a
        TokenTrie in its place is compiled, as `allowed` is. It must depend on its arguments only, and the mesh be one
        process's.
      tokenizer: of the target, ours or a fast one of transformers; needed with stop_strings and
        no_repeat_word_ngram_size.
      callback: is given the sequences so far, int32 [batch, n, capacity], and how many of their tokens count, every few
        tokens (greedy search and sampling).
      compact: finished rows leave the batch; for corpora, since more shapes are compiled.
      best_first: the samples of a row are put in the order of their sequences_scores.
      return_dict_in_generate: False: `sequences` alone are returned, as in torch; True and None: a GenerateOutput.

    Raises:
      ValueError: naming the argument at fault and what to give.
    """
    settings = generation_settings(generation_config, overrides)
    if return_dict_in_generate not in (True, False, None):
        raise ValueError(f"return_dict_in_generate is {return_dict_in_generate!r}; give True, False or None")
    allowed, prefix_allowed_tokens_fn = trie_or_function(allowed, prefix_allowed_tokens_fn)
    check_settings(settings, rng, callback, model.config)
    inputs = (input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, token_type_ids)
    options = {"processors": processors, "criteria": criteria, "tokenizer": tokenizer, "allowed": allowed, "rng": rng}
    options |= {"encoder_outputs": encoder_outputs, "inputs_embeds": inputs_embeds}
    with register(prefix_allowed_tokens_fn) as prefix_function_id:
        job = _make_job(model, params, *inputs, settings, prefix_function_id=prefix_function_id, **options)
        compact = compact and not job.strategy.recorded
        results = engine.decode(job, compact=compact, max_time=settings.max_time, callback=callback)
    if best_first and settings.do_sample:
        order = np.argsort(-results["scores"], axis=1, kind="stable")  # [batch, n]
        sort = lambda array: np.take_along_axis(array, order.reshape(*order.shape, *(1,) * (array.ndim - 2)), axis=1)
        results = {name: array if array.ndim == 1 else sort(array) for name, array in results.items()}
    output = _crop(results, job.prompt.shape[1], settings, model.config.decoder.vocab_size)
    return output.sequences if return_dict_in_generate is False else output


def compile_generate(
    model: EncoderDecoder,
    params: Mapping[str, Any],
    shape: tuple[int, int],
    generation_config: GenerationConfig | Mapping[str, Any] | Any = None,
    *,
    rng: jax.Array | None = None,
    **options: Any,
) -> None:
    """Compiles what `generate` runs for input_ids of `shape` [batch, source] and these settings, and runs nothing.

    Threads may call it for shapes to come. What a growing cache and a shrinking batch need compiles later.

    Args:
      options: processors, criteria, tokenizer and allowed of the call, if it has them.

    Raises:
      ValueError: as `generate`.
    """
    settings, ids = generation_settings(generation_config, {}), np.zeros(shape, np.int32)
    check_settings(settings, rng, None, model.config)
    engine.compile_programs(_make_job(model, params, ids, None, None, None, None, settings, rng=rng, **options))


def _make_job(
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
    **options: Any,
) -> engine.DecodingJob:
    """What the engine runs, from checked settings."""
    config, inputs = model.config, {"token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
    source, encoder_inputs = make_source(config, settings, input_ids, attention_mask, encoder_outputs, **inputs)
    start, pad, _ = special_tokens(settings, config)
    batch, length = source.mask.shape
    prompt, starts = make_prompt(decoder_input_ids, decoder_attention_mask, batch, start, pad, config)
    return engine.DecodingJob(
        model.for_decoding(),
        make_strategy(settings),
        decoding_params(model, params),
        source.replace(prompt_starts=starts),
        encoder_inputs,
        prompt,
        make_search_params(settings, config, prompt.shape[1], length, prompt_starts=starts, **options),
    )


def make_strategy(settings: GenerationConfig) -> Strategy:
    """The strategy that the settings ask for."""
    s = settings
    recorded = tuple(name for name in ("logits", "scores") if getattr(s, f"output_{name}"))
    options = {"early_stopping": s.early_stopping, "use_coverage": s.coverage_penalty > 0, "recorded": recorded}
    if s.num_beam_groups > 1:
        return DiverseBeamSearch(s.num_beams, s.num_beam_groups, **options)
    if s.force_words_ids:
        return ConstrainedBeamSearch(s.num_beams, **options)
    if s.num_beams > 1:
        return BeamSearch(s.num_beams, do_sample=s.do_sample, **options)
    if s.penalty_alpha:
        return ContrastiveSearch(s.top_k)
    if s.prompt_lookup_num_tokens:
        return PromptLookup(s.prompt_lookup_num_tokens, s.max_matching_ngram_size)
    return Sampling(s.num_return_sequences, do_sample=s.do_sample, recorded=recorded)


def make_search_params(
    settings: GenerationConfig,
    config: EncoderDecoderConfig,
    prompt: int,
    source: int,
    *,
    prompt_starts: np.ndarray | None = None,
    processors: Sequence[Processor] = (),
    criteria: Sequence[Criterion] = (),
    tokenizer: Any = None,
    allowed: TokenTrie | None = None,
    prefix_function_id: np.int32 | None = None,
    rng: jax.Array | None = None,
) -> SearchParams:
    """The parameters of a search with prompts of `prompt` tokens over a source of `source` tokens.

    Args:
      prompt_starts: int32 [batch], how many pads stand before each prompt; None: there are none.
      The others: see `generate`.
    """
    _, pad, eos = special_tokens(settings, config)
    max_length, min_length = length_limits(settings, prompt, source, config)
    common = {"vocab_size": config.decoder.vocab_size, "eos": eos, "tokenizer": tokenizer, "allowed": allowed}
    pads = 0 if prompt_starts is None else int(prompt_starts.max())
    lengths = {"prompt_length": prompt, "min_length": min_length, "max_length": max_length, "pads": pads}
    unpadded = pads > 0 and length_excludes_pads(settings)
    custom = as_pytrees(processors, "processors")
    return SearchParams(
        max_length=np.int32(max_length + unpadded * pads),
        max_unpadded_length=np.int32(max_length) if unpadded else None,
        prompt_length=np.int32(prompt),
        pad_id=np.int32(pad),
        eos_ids=np.array(eos, np.int32),
        processors=build_processors(
            settings, custom=custom, prefix_function_id=prefix_function_id, **lengths, **common
        ),
        warpers=build_warpers(settings, beams=settings.num_beams, eos=eos),
        criteria=(*build_criteria(settings), *as_pytrees(criteria, "criteria")),
        automata=build_automata(settings, **common),
        rng=rng if settings.do_sample else None,
        penalties=_penalties(settings),
    )


def _penalties(settings: GenerationConfig) -> dict[str, np.ndarray]:
    """The numbers that the strategies read."""
    names = []
    if settings.num_beams > 1 or settings.do_sample or settings.output_scores or settings.output_logits:
        names.append("length_penalty" if settings.gnmt_length_penalty is None else "gnmt_length_penalty")
    names += [n for n in ("coverage_penalty", "diversity_penalty", "penalty_alpha") if getattr(settings, n)]
    return {name: np.float32(getattr(settings, name)) for name in names}


def _crop(results: dict[str, np.ndarray], prompt: int, settings: GenerationConfig, vocab_size: int) -> GenerateOutput:
    """The arrays as torch returns them: rows flattened, columns up to the longest output."""
    n = settings.num_return_sequences
    sequences = results["sequences"][:, :n]
    sequences = sequences.reshape(-1, sequences.shape[-1])  # [batch * n, capacity]
    beam_indices = None
    scores = jnp.asarray(results["scores"][:, :n].reshape(-1)) if "scores" in results else None
    if "beam_indices" in results:
        beam_indices = results["beam_indices"][:, :n].reshape(len(sequences), -1)
        longest = prompt + int(np.max(np.sum(beam_indices >= 0, axis=1)))
        beam_indices = jnp.asarray(beam_indices[:, prompt:longest])
    else:
        longest = int(results["lengths"].max())
    more = {}
    for name in ("scores", "logits"):
        if f"recorded_{name}" in results:
            array = results[f"recorded_{name}"][:, :, prompt:longest, :vocab_size]
            # [batch, hypotheses, generated, vocab] -> [generated, batch * hypotheses, vocab]
            more[name] = jnp.asarray(array.transpose(2, 0, 1, 3).reshape(longest - prompt, -1, vocab_size))
    if "met" in results:
        more["constraints_met"] = jnp.asarray(results["met"][:, :n].reshape(-1))
    return GenerateOutput(jnp.asarray(sequences[:, :longest]), scores, beam_indices, **more)


# The decoding form of the parameters used last: (model, weak references to the leaves, the tree).
_latest: list[tuple[Any, list[weakref.ref], dict]] = []
_lock = threading.RLock()


def decoding_params(model: EncoderDecoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """`model.decoding_params(params)`; the last tree is kept while the arrays of `params` live. The params of a model
    in decoding form are in that form already."""
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
        # An array that both forms share stays alive; the first of the others that dies clears the tree.
        _latest[:] = [(model, [weakref.ref(leaf, lambda _, latest=_latest: latest.clear()) for leaf in leaves], tree)]
        return tree
