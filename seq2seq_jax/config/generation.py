"""Settings of generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from seq2seq_jax.config.validation import check, nearest

Phrase = tuple[int, ...]

# The value that None stands for, where it is not the default: without the processor, as in torch.
_OFF = {"top_k": 0}
INTEGERS = (
    ("num_beams", 1), ("num_beam_groups", 1), ("num_return_sequences", 1), ("top_k", 0), ("min_length", 0),
    ("no_repeat_ngram_size", 0), ("encoder_no_repeat_ngram_size", 0), ("no_repeat_word_ngram_size", 0),
    ("max_matching_ngram_size", 1),
)  # fmt: skip
OPTIONAL_INTEGERS = (("max_length", 1), ("max_new_tokens", 1), ("min_new_tokens", 0), ("prompt_lookup_num_tokens", 1))
# (field, lower bound, whether it is allowed itself, upper bound, whether it is allowed itself)
_RANGES = (
    ("temperature", 0, False, None, False),
    ("repetition_penalty", 0, False, None, False),
    ("encoder_repetition_penalty", 0, False, None, False),
    ("top_p", 0, False, 1, True),
    ("top_h", 0, False, 1, True),
    ("min_p", 0, True, 1, True),
    ("typical_p", 0, False, 1, True),
    ("epsilon_cutoff", 0, True, 1, False),
    ("eta_cutoff", 0, True, 1, False),
    ("diversity_penalty", 0, True, None, False),
    ("penalty_alpha", 0, True, 1, True),
    ("coverage_penalty", 0, True, None, False),
    ("max_time", 0, False, None, False),
)
SWITCHES = ("do_sample", "remove_invalid_values", "renormalize_logits", "output_scores", "output_logits")


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation (transformers.GenerationConfig: same names, meanings and defaults).

    Lengths count decoder tokens, the start token included, in max_length and min_length, and not in max_new_tokens
    and min_new_tokens, which win. max_length None is 20 tokens beyond the prompt. Lists may be given for tuples.

    Attributes:
      sequence_bias: ((ids, bias), ...): what is added to the score of the last of `ids` where the others precede it; a
        mapping from tuples of ids serves too.
      bad_words_ids: token sequences that must not occur.
      exponential_decay_length_penalty: (start, factor): from `start` tokens after the prompt on, the end token's score
        grows.
      force_words_ids: constraints, each a phrase (ids) or alternatives (ids, ids, ...), which the output must contain.
      num_beam_groups, diversity_penalty: diverse beam search. penalty_alpha: contrastive search, with top_k.
      prompt_lookup_num_tokens, max_matching_ngram_size: prompt lookup decoding, greedy, with so many candidate tokens
        from the source.
      stop_strings: texts that end an output. max_time: seconds after which all outputs end.
      gnmt_length_penalty: alpha; beams are compared by score / ((5 + n) / 6)**alpha instead of score /
        n**length_penalty. coverage_penalty: beta (both: Wu et al. 2016, eq. 14). Not in torch.
      no_repeat_word_ngram_size: beams in which so many words occur again in a row are dropped (Liu & Lapata 2019 with
        3); 0 is off. Not in torch.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: tuple[str, ...] | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    gnmt_length_penalty: float | None = None
    coverage_penalty: float = 0.0
    penalty_alpha: float | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int = 2
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    sequence_bias: tuple[tuple[Phrase, float], ...] | None = None
    encoder_repetition_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    no_repeat_word_ngram_size: int = 0
    bad_words_ids: tuple[Phrase, ...] | None = None
    force_words_ids: tuple[Phrase | tuple[Phrase, ...], ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    renormalize_logits: bool = False
    output_scores: bool = False
    output_logits: bool = False
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    bos_token_id: int | None = None

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value = hashable(getattr(self, f.name))
            object.__setattr__(self, f.name, _OFF.get(f.name, f.default) if value is None else value)
        self._check_numbers()
        self._check_tokens()
        check(
            self.early_stopping in (True, False, "never"),
            f"early_stopping is {self.early_stopping!r}; give True, False or 'never'",
        )
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        strings = self.stop_strings
        check(
            strings is None or all(isinstance(s, str) and s for s in strings),
            f"stop_strings is {strings!r}; give texts that are not empty",
        )
        groups = self.num_beam_groups
        check(
            self.num_beams % groups == 0,
            f"num_beam_groups is {groups} and num_beams {self.num_beams}; make num_beams a multiple of it",
        )
        check(
            groups == 1 or self.diversity_penalty > 0,
            f"num_beam_groups is {groups} and diversity_penalty 0: the groups would be equal; set diversity_penalty",
        )

    def _check_numbers(self) -> None:
        for name, low in (*INTEGERS, *OPTIONAL_INTEGERS):
            value = getattr(self, name)
            fits = (value is None and (name, low) in OPTIONAL_INTEGERS) or (_is_integer(value) and value >= low)
            check(fits, f"{name} is {value!r}; give a whole number from {low} up")
        for name, low, with_low, high, with_high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            fits = _is_number(value) and (value > low or (with_low and value == low))
            fits = fits and (high is None or value < high or (with_high and value == high))
            upper = "" if high is None else f", {'up to' if with_high else 'below'} {high}"
            check(fits, f"{name} is {value!r}; give a number {'from' if with_low else 'above'} {low}{upper}")
        alpha = self.gnmt_length_penalty
        check(_is_number(self.length_penalty), f"length_penalty is {self.length_penalty!r}; give a number")
        check(alpha is None or _is_number(alpha), f"gnmt_length_penalty is {alpha!r}; give a number")
        for name in SWITCHES:
            value = getattr(self, name)
            check(isinstance(value, bool), f"{name} is {value!r}; give True or False")

    def _check_tokens(self) -> None:
        for name in ("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"):
            if getattr(self, name) == ():
                object.__setattr__(self, name, None)
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            value = getattr(self, name)
            check(value is None or _is_phrase(value), f"{name} is {value!r}; give a list of token ids")
        bad = self.bad_words_ids
        check(
            bad is None or (isinstance(bad, tuple) and all(map(_is_phrase, bad))),
            f"bad_words_ids is {bad!r}; give a list of lists of token ids",
        )
        forced = self.force_words_ids
        check(
            forced is None or (isinstance(forced, tuple) and all(map(_is_constraint, forced))),
            f"force_words_ids is {forced!r}; give a list of phrases, each a list of token ids, or of lists of such",
        )
        biases = self.sequence_bias
        check(
            biases is None or (isinstance(biases, tuple) and all(map(_is_bias, biases))),
            f"sequence_bias is {biases!r}; give a list of [token ids, number]",
        )
        if biases is not None:
            object.__setattr__(self, "sequence_bias", tuple((ids, float(bias)) for ids, bias in biases))
        decay = self.exponential_decay_length_penalty
        check(
            decay is None or _is_decay(decay),
            f"exponential_decay_length_penalty is {decay!r}; give (start, factor): a whole number, and one above 0",
        )

    def replace(self, **changes: Any) -> GenerationConfig:
        """A copy with `changes`; an unknown name is an error that names the nearest."""
        names = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            check(name in names, f"generation setting {name!r} is unknown: {nearest(name, names)}")
        return dataclasses.replace(self, **changes)


def hashable(value: Any) -> Any:
    """Turns lists into tuples, mappings into tuples of (key, value), numpy's values into Python's."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return tuple(hashable(v) for v in value)
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_phrase(value: Any) -> bool:
    return isinstance(value, Iterable) and len(value) > 0 and all(_is_integer(v) and v >= 0 for v in value)


def _is_constraint(value: Any) -> bool:
    return _is_phrase(value) or (isinstance(value, tuple) and len(value) > 0 and all(map(_is_phrase, value)))


def _is_bias(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_phrase(value[0]) and _is_number(value[1])


def _is_decay(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and _is_integer(value[0]) and _is_number(value[1]) and value[1] > 0
