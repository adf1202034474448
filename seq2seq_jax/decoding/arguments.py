"""The checks of `generate`'s arguments, and their translation to what a search takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from seq2seq_jax.config import EncoderDecoderConfig, GenerationConfig, check, generation_from_hf
from seq2seq_jax.config.generation_files import note_unknown
from seq2seq_jax.decoding.automata import TokenTrie
from seq2seq_jax.decoding.decode_loop import Source
from seq2seq_jax.decoding.prefix_function import PrefixFunction
from seq2seq_jax.models.inputs import check_encoder_inputs
from seq2seq_jax.models.targets import check_ids, shape_of
from seq2seq_jax.models.transformer import check_length


def generation_settings(generation_config: Any, overrides: Mapping[str, Any]) -> GenerationConfig:
    """The settings of a call.

    Args:
      generation_config: a GenerationConfig; or a mapping with its fields or an object with `to_dict`
        (transformers.GenerationConfig), read as transformers 5 acts on it, with a warning for each field that has no
        effect or is read otherwise; None: the defaults.
      overrides: fields that replace its own.

    Raises:
      ValueError: for an unknown field, or a value out of range.
    """
    config = GenerationConfig() if generation_config is None else generation_config
    if not isinstance(config, GenerationConfig):
        if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
            raise ValueError(f"generation_config is {config!r}; give a GenerationConfig, ours or transformers'")
        fields, notes = config if isinstance(config, Mapping) else config.to_dict(), []
        note_unknown(fields, notes.append)
        config = generation_from_hf(fields, note=notes.append)
        for text in notes:
            warnings.warn(f"generation_config: {text}", stacklevel=3)
    return config.replace(**overrides)


def special_tokens(settings: GenerationConfig, config: EncoderDecoderConfig) -> tuple[int, int, tuple[int, ...]]:
    """Start, pad and end token ids: from the settings, else from the pair's config."""

    def first_given(*values):
        return next((value for value in values if value is not None), None)

    start = first_given(settings.decoder_start_token_id, config.decoder_start_token_id, settings.bos_token_id)
    if start is None:
        raise ValueError("decoder_start_token_id is not known; give decoder_start_token_id=...")
    eos = settings.eos_token_id
    if eos is None and not config.eos_token_ids:
        raise ValueError("eos_token_id is not known; give eos_token_id=..., or eos_token_id=() to decode to max_length")
    eos = config.eos_token_ids if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    pad = first_given(settings.pad_token_id, config.pad_token_id, *eos[:1])
    if pad is None:
        raise ValueError("pad_token_id is not known, and there is no end token to stand in; give pad_token_id=...")
    for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad), ("eos_token_id", list(eos))):
        check_ids(name, np.array(value, np.int64).reshape(-1), config.decoder.vocab_size)
    return start, pad, eos


# Settings that read the source's tokens, and whether a value does.
SOURCE_READERS = {
    "encoder_repetition_penalty": lambda value: value != 1.0,
    "encoder_no_repeat_ngram_size": bool,
    "prompt_lookup_num_tokens": lambda value: value is not None,
}


def make_source(
    config: EncoderDecoderConfig, settings: GenerationConfig, ids: Any, mask: Any, outputs: Any, **more: Any
) -> tuple[Source, dict[str, Any]]:
    """The source, and what the encoder takes beside its ids and mask: `more` (token_type_ids, inputs_embeds), or the
    encoder's outputs."""
    ids, mask = _as_array("input_ids", ids), _as_array("attention_mask", mask)
    more = {name: _as_array(name, array) for name, array in more.items()}
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
    return source, {name: array for name, array in more.items() if array is not None}


def make_prompt(
    given: Any, mask: Any, batch: int, start: int, pad: int, config: EncoderDecoderConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """The decoder's prompt, int32 [batch, p], and the positions where the rows' prompts begin, int32 [batch] or None.

    Without pads in the mask, all rows get the start token in front, unless some row has it already (torch's rule), and
    the second is None. With pads, each row gets its start token, behind its pads.
    """
    given, mask = _as_array("decoder_input_ids", given), _as_array("decoder_attention_mask", mask)
    if given is None:
        if mask is not None:
            raise ValueError("decoder_attention_mask says where decoder_input_ids have tokens; give these too")
        return np.full((batch, 1), start, np.int32), None
    given = np.asarray(given)
    if given.ndim != 2 or given.shape[0] != batch or given.shape[1] == 0:
        raise ValueError(f"decoder_input_ids has shape {list(given.shape)}; give [{batch}, p] with at least one token")
    check_ids("decoder_input_ids", given, config.decoder.vocab_size)
    if mask is not None and not np.all(mask):
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
        prompt_starts = np.array([longest - len(row) for row in rows], np.int32)
        # [batch, p]
        prompt = np.stack([np.pad(row, (n, 0), constant_values=pad) for row, n in zip(rows, prompt_starts)])
        return prompt.astype(np.int32), prompt_starts if prompt_starts.any() else None
    if (given[:, 0] != start).all():
        given = np.concatenate([np.full((batch, 1), start), given], axis=1)
    return given.astype(np.int32), None


def length_limits(
    settings: GenerationConfig, prompt: int, source: int, config: EncoderDecoderConfig
) -> tuple[int, int]:
    """max_length and min_length in tokens, prompt included, for a source of `source` tokens."""
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


def check_settings(
    settings: GenerationConfig, rng: jax.Array | None, callback: Callable | None, config: EncoderDecoderConfig
) -> None:
    """Raises ValueError for settings that exclude each other."""
    s, beams = settings, settings.num_beams
    strategies = {
        "num_beam_groups": s.num_beam_groups > 1,
        "force_words_ids": bool(s.force_words_ids),
        "penalty_alpha": bool(s.penalty_alpha),
        "prompt_lookup_num_tokens": s.prompt_lookup_num_tokens is not None,
        "do_sample": s.do_sample,
    }
    chosen = [name for name, on in strategies.items() if on]
    check(len(chosen) < 2, f"{' and '.join(chosen)} are different ways to search; give one of them")
    check(not s.do_sample or rng is not None, "do_sample draws random numbers; give rng=jax.random.key(...)")
    n = s.num_return_sequences
    check(beams == 1 or n <= beams, f"num_return_sequences {n} is above num_beams {beams}; raise num_beams")
    check(
        beams > 1 or n == 1 or s.do_sample,
        f"greedy search gives one output and num_return_sequences is {n}; set num_beams or do_sample",
    )
    for name in ("penalty_alpha", "prompt_lookup_num_tokens"):
        check(
            not strategies[name] or beams == 1, f"{name} goes without beams and num_beams is {beams}; set num_beams=1"
        )
        outputs = [f"output_{part}" for part in ("scores", "logits") if getattr(s, f"output_{part}")]
        check(not strategies[name] or not outputs, f"{name} records no {' and '.join(outputs)}; leave one of them out")
    check(not s.force_words_ids or beams > 1, "force_words_ids needs several beams; set num_beams")
    check(not s.penalty_alpha or s.top_k > 1, f"penalty_alpha chooses among top_k tokens and top_k is {s.top_k}")
    same = config.encoder.vocab_size == config.decoder.vocab_size
    check(
        not strategies["prompt_lookup_num_tokens"] or same,
        "prompt_lookup_num_tokens copies ids from the source, and the two sides have vocabularies of"
        f" {config.encoder.vocab_size} and {config.decoder.vocab_size}; leave it out",
    )
    check(
        callback is None or beams == 1,
        f"callback shows outputs while they grow, and {beams} beams have none yet; set num_beams=1",
    )
    check(
        s.coverage_penalty == 0 or beams > 1,
        "coverage_penalty compares beams and num_beams is 1; set num_beams, or leave it out",
    )


def trie_or_function(
    trie: TokenTrie | None, function: PrefixFunction | TokenTrie | None
) -> tuple[TokenTrie | None, PrefixFunction | None]:
    """The trie, which is compiled, and the function, which runs on the host; a trie may be given as the function."""
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


def _as_array(name: str, value: Any) -> Any:
    """Lists, and arrays of other libraries such as torch's, as numpy's."""
    if value is None or isinstance(value, np.ndarray | jax.Array):
        return value
    shape_of(name, value)  # refuses ragged lists
    return np.asarray(value)
