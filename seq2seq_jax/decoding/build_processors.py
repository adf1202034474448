"""Builds processors, warpers, criteria and automata from a GenerationConfig.

Their numbers are numpy scalars and arrays, so that settings with other numbers have the same structure and compile
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seq2seq_jax.config import GenerationConfig, check
from seq2seq_jax.decoding import processors as p
from seq2seq_jax.decoding import warpers as w
from seq2seq_jax.decoding.automata import AhoCorasick, StopStringCriterion, StopStrings, TokenTrie
from seq2seq_jax.decoding.context import Automaton, Criterion, Processor
from seq2seq_jax.decoding.prefix_function import AllowedByFunction

# The least width of the sort in TopKTopP; widths are powers of two, so that another top_k seldom compiles.
_MIN_WIDTH = 64


def build_processors(
    settings: GenerationConfig,
    *,
    vocab_size: int,
    prompt_length: int,
    min_length: int,
    max_length: int,
    eos: tuple[int, ...],
    custom: Sequence[Processor] = (),
    tokenizer: Any = None,
    allowed: TokenTrie | None = None,
    prefix_function_id: np.int32 | None = None,
    pads: int = 0,
) -> tuple[Processor, ...]:
    """The processors of the settings, in torch's order (`_get_logits_processor`), `custom` ones behind torch's.

    Args:
      vocab_size: without padding.
      prompt_length, min_length, max_length: in tokens, start token and prompt included.
      eos: end tokens.
      tokenizer: of the target; has a `backend`. Needed with no_repeat_word_ngram_size.
      allowed: the sequences that may follow the prompt. prefix_function_id: see `prefix_function.register`.
      pads: the most pads before a prompt; with some, min_length and max_length of the settings do not count them.

    Raises:
      ValueError: naming the setting at fault and what to give.
    """
    s, out = settings, [p.PaddedVocabulary(vocab_size)]
    _check_ids(s, vocab_size)
    if s.sequence_bias:
        out.append(p.SequenceBias.from_pairs(s.sequence_bias))
    if s.encoder_repetition_penalty != 1:
        out.append(p.EncoderRepetitionPenalty(np.float32(s.encoder_repetition_penalty)))
    if s.repetition_penalty != 1:
        out.append(p.RepetitionPenalty(np.float32(s.repetition_penalty)))
    if s.no_repeat_ngram_size:
        out.append(p.NoRepeatNGram(s.no_repeat_ngram_size))
    if s.encoder_no_repeat_ngram_size:
        out.append(p.EncoderNoRepeatNGram(s.encoder_no_repeat_ngram_size))
    # An end token alone is never a bad word.
    bad = [ids for ids in s.bad_words_ids or () if len(ids) > 1 or ids[0] not in eos]
    if bad:
        out.append(p.SequenceBias.from_pairs([(ids, -np.inf) for ids in bad]))
    ends = np.array(eos, np.int32)
    if min_length > prompt_length - pads and eos:
        out.append(p.MinLength(np.int32(min_length), ends, pads > 0 and s.min_new_tokens is None))
    if allowed is not None:
        largest = allowed.largest
        check(largest < vocab_size, f"allowed has {largest}; give ids below the vocabulary's size {vocab_size}")
        out.append(p.AllowedTokens(allowed))
    if prefix_function_id is not None:
        out.append(AllowedByFunction(prefix_function_id, vocab_size))
    if s.forced_bos_token_id is not None:
        out.append(p.ForcedBos(np.int32(s.forced_bos_token_id)))
    if s.forced_eos_token_id is not None:
        skip_pads = pads > 0 and length_excludes_pads(s)
        out.append(p.ForcedEos(np.atleast_1d(np.int32(s.forced_eos_token_id)), np.int32(max_length), skip_pads))
    if s.remove_invalid_values:
        out.append(p.RemoveInvalid(vocab_size))
    if s.exponential_decay_length_penalty and eos:
        start, factor = s.exponential_decay_length_penalty
        out.append(p.ExponentialDecayLengthPenalty(np.int32(start + prompt_length), np.float32(np.log(factor)), ends))
    if s.suppress_tokens:
        out.append(p.SuppressTokens(np.array(s.suppress_tokens, np.int32)))
    if s.begin_suppress_tokens:
        forced = s.forced_bos_token_id is not None
        length = np.int32(prompt_length + (prompt_length == 1 and forced))
        out.append(p.BeginSuppressTokens(np.array(s.begin_suppress_tokens, np.int32), length, forced))
    out += custom
    if s.renormalize_logits and not s.do_sample:
        out.append(w.Renormalize())
    if s.no_repeat_word_ngram_size:
        out.append(_word_blocking(s, vocab_size, tokenizer))
    return tuple(out)


def build_warpers(settings: GenerationConfig, *, beams: int, eos: tuple[int, ...]) -> tuple[Processor, ...]:
    """The warpers of the settings, in torch's order; none without do_sample.

    Args:
      beams: num_beams; a beam needs a continuation beside the end tokens.
      eos: end tokens.
    """
    s = settings
    if not s.do_sample:
        return ()
    keep, out = max(2, len(eos) + 1) if beams > 1 else 1, []
    if s.temperature != 1:
        out.append(w.Temperature(np.float32(s.temperature)))
    if s.top_h is not None:
        out.append(w.TopH(np.float32(s.top_h)))
    if s.top_k or s.top_p < 1:
        out.append(_top_k_top_p(s, keep))
    if s.min_p is not None:
        out.append(w.MinP(np.float32(s.min_p), keep))
    if s.typical_p < 1:
        out.append(w.TypicalP(np.float32(s.typical_p), np.int32(keep)))
    if s.epsilon_cutoff:
        out.append(w.EpsilonCutoff(np.float32(s.epsilon_cutoff), keep))
    if s.eta_cutoff:
        out.append(w.EtaCutoff(np.float32(s.eta_cutoff), keep))
    if s.renormalize_logits:
        out.append(w.Renormalize())
    return tuple(out)


def build_criteria(settings: GenerationConfig) -> tuple[Criterion, ...]:
    """The criteria of the settings; end tokens, max_length and max_time are none."""
    return (StopStringCriterion(),) if settings.stop_strings else ()


def build_automata(
    settings: GenerationConfig,
    *,
    vocab_size: int,
    eos: tuple[int, ...],
    tokenizer: Any = None,
    allowed: TokenTrie | None = None,
) -> dict[str, Automaton]:
    """The automata whose states processors, criteria and constrained beam search read.

    Args:
      tokenizer: of the target; has a `backend`. Needed with stop_strings.

    Returns:
      By name: "allowed" (the given trie), "stop" (of stop_strings), "constraints" (of force_words_ids).
    """
    out: dict[str, Automaton] = {}
    if allowed is not None:
        out["allowed"] = allowed
    if settings.stop_strings:
        check(tokenizer is not None, "stop_strings are texts; give the target's tokenizer=...")
        out["stop"] = StopStrings.from_strings(settings.stop_strings, tokenizer)
    if settings.force_words_ids:
        _check_ids(settings, vocab_size)
        out["constraints"] = AhoCorasick.from_phrases(
            [[ids] if isinstance(ids[0], int) else ids for ids in settings.force_words_ids]
        )
    return out


def length_excludes_pads(settings: GenerationConfig) -> bool:
    """Whether the greatest length is max_length, which does not count pads before a prompt."""
    return settings.max_new_tokens is None and settings.max_length is not None


def _check_ids(settings: GenerationConfig, vocab_size: int) -> None:
    """Raises ValueError for ids outside the vocabulary."""
    for name in ("sequence_bias", "bad_words_ids", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(settings, name)
        value = [ids for ids, _ in value] if name == "sequence_bias" and value else value
        beyond = [token for token in _flat(value) if token >= vocab_size]
        check(not beyond, f"{name} has {beyond[:5]}; give ids below the vocabulary's size {vocab_size}")


def _flat(ids: Any) -> list[int]:
    """All ids in nested tuples."""
    if isinstance(ids, tuple | list):
        return [token for part in ids for token in _flat(part)]
    return [] if ids is None else [ids]


def _word_blocking(settings: GenerationConfig, vocab_size: int, tokenizer: Any) -> p.BlockRepeatedWords:
    size = settings.no_repeat_word_ngram_size
    check(tokenizer is not None, f"no_repeat_word_ngram_size is {size}: words need the target's tokenizer=...")
    check(
        settings.num_beams > 1,
        f"no_repeat_word_ngram_size is {size}: it drops beams, so raise num_beams above 1, or set no_repeat_ngram_size",
    )
    check(
        not (settings.do_sample and settings.renormalize_logits),
        f"no_repeat_word_ngram_size is {size}: renormalize_logits would undo it where there is sampling; unset one",
    )
    return p.BlockRepeatedWords(p.word_table(tokenizer, vocab_size), size)


def _top_k_top_p(settings: GenerationConfig, keep: int) -> w.TopKTopP:
    width, top_k, top_p, tail = None, None, None, None
    if settings.top_k:
        top_k = np.int32(settings.top_k)
        width = max(_MIN_WIDTH, 1 << (max(settings.top_k, keep) - 1).bit_length())
    if settings.top_p < 1:
        top_p, tail = np.float32(settings.top_p), np.float32(1 - settings.top_p)
    return w.TopKTopP(top_k, top_p, np.int32(keep), width, tail)
