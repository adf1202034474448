"""Processors, warpers and stop strings against torch's classes, on random scores and sequences."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers.generation import logits_process, stopping_criteria  # noqa: E402
from transformers.generation.logits_process import LogitsProcessorList, PrefixConstrainedLogitsProcessor  # noqa: E402

from seq2seq_jax.config import GenerationConfig, generation_from_hf, generation_to_hf  # noqa: E402
from seq2seq_jax.decoding import warpers  # noqa: E402
from seq2seq_jax.decoding.automata import StopStrings, TokenTrie  # noqa: E402
from seq2seq_jax.decoding.build_processors import build_processors, build_warpers  # noqa: E402
from seq2seq_jax.decoding.context import DecodingContext, apply_processors  # noqa: E402
from tests.decoding.jitted import jitted  # noqa: E402

pytestmark = pytest.mark.parity

BATCH, BEAMS, ROWS, VOCAB, CAPACITY, SOURCE = 2, 3, 41, 37, 16, 9
EOS = (2, 5)
run = jitted(apply_processors)
advanced = jitted(lambda automaton, states, tokens: automaton.next_states(states, tokens))


def case(rng, rows=ROWS, **changes):
    """Random scores, and a context of sequences of few different tokens."""
    scores = rng.normal(size=(BATCH, BEAMS, rows)) * rng.choice([0.3, 1.0, 4.0])
    context = {
        "sequences": rng.integers(0, rng.choice([3, 8, VOCAB]), (BATCH, BEAMS, CAPACITY)),
        "length": rng.integers(1, CAPACITY + 1),
        "prompt_length": 1,
        "source": rng.integers(0, rng.choice([4, VOCAB]), (BATCH, SOURCE)),
        **changes,
    }
    arrays = {name: jnp.asarray(value, jnp.int32) for name, value in context.items()}
    return jnp.asarray(scores, jnp.float32), DecodingContext(source_mask=jnp.ones((BATCH, SOURCE), bool), **arrays)


def theirs(settings, scores, context, *, max_length, beams=BEAMS, mask=None):
    """The scores that torch's generate makes with these settings."""
    # Off unless asked for, as in a GenerationConfig that generate has not filled up.
    config = transformers.GenerationConfig(**{"num_beams": beams, "max_length": max_length, **settings})
    config._eos_token_tensor = torch.tensor(EOS)
    if config.min_new_tokens is not None:
        config.min_length = int(context.prompt_length) + config.min_new_tokens
    generator = types.SimpleNamespace(
        config=types.SimpleNamespace(is_encoder_decoder=True),
        _merge_criteria_processor_list=lambda default, custom: default,
    )
    made = transformers.GenerationMixin._get_logits_processor(
        generator, config, input_ids_seq_length=int(context.prompt_length),
        encoder_input_ids=torch.tensor(np.array(context.source, np.int64)), logits_processor=LogitsProcessorList(),
    )  # fmt: skip
    ids = torch.tensor(np.array(context.sequences[..., : int(context.length)], np.int64)).flatten(0, 1)
    known = scores[..., : VOCAB if scores.shape[-1] == ROWS else None]
    assert made, settings
    return made(ids, torch.tensor(np.array(known)).flatten(0, 1)).numpy().reshape(known.shape)


def ours(settings, scores, context, *, max_length, beams=BEAMS):
    config = GenerationConfig(**{"num_beams": beams, "top_k": 0, **settings})
    prompt = int(context.prompt_length)
    shortest = config.min_length if config.min_new_tokens is None else prompt + config.min_new_tokens
    made = build_processors(
        config,
        vocab_size=VOCAB if scores.shape[-1] == ROWS else scores.shape[-1],
        prompt_length=prompt,
        min_length=shortest,
        max_length=max_length,
        eos=EOS,
    )
    return np.asarray(run(scores, context, (*made, *build_warpers(config, beams=beams, eos=EOS))))


def same(got, expected):
    known = expected.shape[-1]
    np.testing.assert_array_equal(np.isneginf(got[..., :known]), np.isneginf(expected))
    np.testing.assert_allclose(got[..., :known], expected, rtol=2e-5, atol=1e-5)
    assert np.isneginf(got[..., known:]).all()


def phrases(rng, count, longest=4):
    """Token sequences of few different tokens, as many of each length in each call."""
    lengths = [1 + i % longest for i in range(count)]
    found = {tuple(int(t) for t in rng.integers(0, 8, n)) for n in lengths for _ in range(3)}
    of = {n: [ids for ids in sorted(found) if len(ids) == n] for n in range(1, longest + 1)}
    return [list(of[n].pop()) for n in lengths]


def number(low, high):
    return lambda rng: float(rng.uniform(low, high))


# What each draws: (settings, sampling). The shapes of an entry's settings stay the same, so it compiles once.
PROCESSORS = {
    "sequence_bias": lambda rng: [[ids, float(rng.normal())] for ids in phrases(rng, 9)],
    "sequence_bias of single tokens": lambda rng: [[ids, float(rng.normal())] for ids in phrases(rng, 2, 1)],
    "encoder_repetition_penalty": number(0.5, 2),
    "repetition_penalty": number(0.5, 2),
    "no_repeat_ngram_size": lambda rng: int(rng.integers(1, 5)),
    "encoder_no_repeat_ngram_size": lambda rng: int(rng.integers(1, 5)),
    "bad_words_ids": lambda rng: [
        *(ids for ids in phrases(rng, 9) if ids[1:]),
        [2],
        [9],
        [int(rng.integers(10, VOCAB))],
    ],
    "min_length": lambda rng: int(rng.integers(2, 17)),
    "min_new_tokens": lambda rng: int(rng.integers(1, 17)),
    "forced_bos_token_id": lambda rng: int(rng.integers(0, VOCAB)),
    "forced_eos_token_id": lambda rng: rng.integers(0, VOCAB, 2).tolist(),
    "remove_invalid_values": lambda rng: True,
    "exponential_decay_length_penalty": lambda rng: (int(rng.integers(0, 6)), float(rng.uniform(0.9, 1.4))),
    "suppress_tokens": lambda rng: rng.integers(0, VOCAB, 4).tolist(),
    "begin_suppress_tokens": lambda rng: rng.integers(0, VOCAB, 4).tolist(),
    "renormalize_logits": lambda rng: True,
}
WARPERS = {
    "temperature": number(0.2, 3),
    "top_h": number(0.05, 0.95),
    "top_k": lambda rng: int(rng.integers(1, 45)),
    "top_p": number(0.02, 0.98),
    "min_p": number(0.0, 0.9),
    "typical_p": number(0.05, 0.95),
    "epsilon_cutoff": number(0.001, 0.3),
    "eta_cutoff": number(0.001, 0.3),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name):
    rng = np.random.default_rng(len(name))
    field = name.split()[0]
    changed = 0
    for _ in range(14):
        settings = {field: PROCESSORS[name](rng)}
        # Lengths at which something happens are few; prompts as torch has them.
        length = rng.integers(1, 5) if field.startswith(("forced", "begin")) else rng.integers(1, CAPACITY + 1)
        scores, context = case(rng, length=length, prompt_length=min(length, rng.choice([1, 2])))
        if field == "remove_invalid_values":
            odd = rng.choice([0.0, np.nan, np.inf, -np.inf], scores.shape)
            scores = jnp.where(odd == 0, scores, odd)
        max_length = int(length) + int(rng.integers(1, 3))
        expected = theirs(settings, scores, context, max_length=max_length)
        same(ours(settings, scores, context, max_length=max_length), expected)
        changed += not np.array_equal(expected, scores[..., :VOCAB])
    assert changed > 1, "the cases try nothing"


@pytest.mark.parametrize("beams", [1, BEAMS], ids=["sampling", "beam sampling"])
@pytest.mark.parametrize("name", WARPERS)
def test_warpers(name, beams):
    rng = np.random.default_rng(len(name))
    for _ in range(14):
        settings = {"do_sample": True, name: WARPERS[name](rng)}
        scores, context = case(rng)
        expected = theirs(settings, scores, context, max_length=CAPACITY, beams=beams)
        same(ours(settings, scores, context, max_length=CAPACITY, beams=beams), expected)


def odd_scores(rng, rows):
    """float32 [10, rows]: ties, bans, wide ranges, and, in few rows, probabilities that are decimals; of more, torch
    makes a vector's, whose last bits are its own."""
    parts = rng.multinomial(20 - rows if rows < 16 else 9 * rows, np.ones(rows) / rows, 2) + 1
    decimals = np.log((parts / parts.sum(axis=1, keepdims=True)).astype(np.float32))
    banned = rng.normal(size=rows) * 3
    banned[1:][rng.random(rows - 1) < 0.5] = -np.inf
    alone = np.full(rows, -np.inf)
    alone[rows // 2] = 0.3
    other = [rng.normal(size=rows), rng.normal(size=rows) * 60, rng.integers(0, 4, rows), np.full(rows, rng.normal())]
    return np.stack([*decimals, banned, alone, *other, np.round(rng.normal(size=rows), 1), np.zeros(rows)]).astype("f4")


CUT_OFFS = {
    "top_p": lambda p, keep: (
        warpers.TopKTopP(None, np.float32(p), np.int32(keep)),
        [logits_process.TopPLogitsWarper(p, min_tokens_to_keep=keep)],
    ),
    "top_k and top_p": lambda p, keep: (
        warpers.TopKTopP(np.int32(6), np.float32(p), np.int32(keep), 8),
        [
            logits_process.TopKLogitsWarper(6, min_tokens_to_keep=keep),
            logits_process.TopPLogitsWarper(p, min_tokens_to_keep=keep),
        ],
    ),
    "top_k": lambda p, keep: (
        warpers.TopKTopP(np.int32(1 + 9 * p), None, np.int32(keep), 16),
        [logits_process.TopKLogitsWarper(int(1 + 9 * p), min_tokens_to_keep=keep)],
    ),
    "typical": lambda p, keep: (
        warpers.TypicalP(np.float32(p), np.int32(keep)),
        [logits_process.TypicalLogitsWarper(p, min_tokens_to_keep=keep)],
    ),
    "min_p": lambda p, keep: (
        warpers.MinP(np.float32(p), keep),
        [logits_process.MinPLogitsWarper(p, min_tokens_to_keep=keep)],
    ),
    "epsilon": lambda p, keep: (
        warpers.EpsilonCutoff(np.float32(p / 9), keep),
        [logits_process.EpsilonLogitsWarper(p / 9, min_tokens_to_keep=keep)],
    ),
    "eta": lambda p, keep: (
        warpers.EtaCutoff(np.float32(p / 9), keep),
        [logits_process.EtaLogitsWarper(p / 9, min_tokens_to_keep=keep)],
    ),
    "top_h": lambda p, keep: (warpers.TopH(np.float32(p)), [logits_process.TopHLogitsWarper(p)]),
}


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("rows", [5, 200])
@pytest.mark.parametrize("name", CUT_OFFS)
def test_cut_offs_keep_as_much_as_torch(name, rows, keep):
    """Among equal scores torch's choice is open; how many of them stay is not."""
    rng = np.random.default_rng(rows + keep)
    scores = odd_scores(rng, rows)
    for p in (0.1, 0.2, 0.5, 0.6, 0.8, 0.95, 0.99, *rng.uniform(0.05, 0.95, 3).tolist()):
        ours, theirs = CUT_OFFS[name](p, keep)
        expected = torch.tensor(scores)
        for warper in theirs:
            expected = warper(None, expected)
        got = np.asarray(run(scores[:, None], None, (ours,)))[:, 0]
        assert (np.isneginf(got) | (got == scores)).all()
        np.testing.assert_array_equal(np.sort(got), np.sort(expected.numpy()), err_msg=f"{name} {p}")


@pytest.mark.parametrize("names", [["top_h"], ["top_k"], ["top_k", "top_p"], ["top_k", "min_p", "typical_p"]])
def test_warpers_of_many_rows(names):
    """More rows than those which are ordered."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        settings = {"do_sample": True, **{name: WARPERS[name](rng) for name in names}}
        scores, context = case(rng, rows=300)
        expected = theirs(settings, scores, context, max_length=CAPACITY)
        same(ours(settings, scores, context, max_length=CAPACITY), expected)


@pytest.mark.parametrize("seed", range(4))
def test_in_order(seed):
    """Many at once, in torch's order, on logits and on log-probabilities, some of which are banned."""
    rng = np.random.default_rng(seed)
    sample = bool(seed % 2)
    names = [*PROCESSORS, *(WARPERS if sample else ())]
    # A forced token bans all others, and then nothing is left to compare.
    names = [name for name in names if rng.random() < 0.55 and "forced" not in name and "remove" not in name]
    sizes = {name: int(rng.integers(1, 4)) for name in names if "ngram" in name}
    for _ in range(6):
        settings = {name.split()[0]: (WARPERS | PROCESSORS)[name](rng) for name in names}
        settings = {**settings, **sizes, "do_sample": sample}
        scores, context = case(rng)
        scores = jnp.where(rng.random(scores.shape) < 0.1, -jnp.inf, jax.nn.log_softmax(scores))
        expected = theirs(settings, scores, context, max_length=CAPACITY)
        same(ours(settings, scores, context, max_length=CAPACITY), expected)


@pytest.mark.parametrize("name", ["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"])
@pytest.mark.parametrize("left", [False, True])
def test_source_padding_is_absent(name, left):
    """Rows of a padded source count as they do alone; torch takes the pads for tokens."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        scores, context = case(rng)
        kept = slice(3, None) if left else slice(None, -3)
        mask = np.zeros((BATCH, SOURCE), bool)
        mask[:, kept] = True
        settings = {name: 1.5 if "penalty" in name else 2}
        expected = theirs(settings, scores, context.replace(source=context.source[:, kept]), max_length=CAPACITY)
        same(ours(settings, scores, context.replace(source_mask=mask), max_length=CAPACITY), expected)


@pytest.mark.parametrize("per_row", [False, True])
def test_allowed_tokens(per_row):
    rng = np.random.default_rng(0)
    sets = [phrases(rng, 12) + [[*ids, 9] for ids in phrases(rng, 6)] for _ in range(BATCH)]
    sets = sets if per_row else sets[:1] * BATCH
    trie = TokenTrie.from_rows(sets, end=EOS) if per_row else TokenTrie.from_sequences(sets[0], end=EOS)
    config = GenerationConfig()

    def next_of(row, ids):
        after = ids.tolist()[2:]
        found = {s[len(after)] for ids in sets[row] for e in EOS if (s := [*ids, e])[: len(after)] == after != s}
        return sorted(found)

    for trial in range(6):
        scores, context = case(rng, prompt_length=2, length=2)
        states, ids = trie.initial_states(context.sequences[:, 0, :2])[:, None], np.array(context.sequences)
        states = jnp.broadcast_to(states, (BATCH, BEAMS))
        for length in range(2, 6):
            context = context.replace(
                length=jnp.int32(length), sequences=jnp.asarray(ids), automaton_states={"allowed": states}
            )
            if trial % 3:  # all that the first row, or its first hypothesis, may write is banned already
                scores = scores.at[0, : BEAMS if trial % 3 == 1 else 1, :10].set(-jnp.inf)
            options = [[next_of(row, ids[row, beam, :length]) for beam in range(BEAMS)] for row in range(BATCH)]
            if not all(option for row in options for option in row):
                break
            judge = PrefixConstrainedLogitsProcessor(next_of, BEAMS)
            flat = torch.tensor(ids[..., :length].reshape(-1, length).astype(np.int64))
            expected = judge(flat, torch.tensor(np.array(scores[..., :VOCAB])).flatten(0, 1)).numpy()
            made = build_processors(
                config, vocab_size=VOCAB, prompt_length=2, min_length=0, max_length=CAPACITY, eos=EOS, allowed=trie
            )
            same(np.asarray(run(scores, context, made)), expected.reshape(BATCH, BEAMS, VOCAB))
            # Walk on, to an end only when nothing else is left.
            chosen = [[rng.choice([o for o in c if o not in EOS] or c) for c in row] for row in options]
            ids[..., length] = chosen
            states = advanced(trie, states, jnp.asarray(chosen, jnp.int32))


TEXT = ["abcdef the stop sign stopped the opera, which nonstop topped it. Stop! élan 日本 stops"] * 3


class Backed:
    """What our functions take for a tokenizer."""

    def __init__(self, backend):
        self.backend = backend


def word_piece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    alphabet = sorted({*"".join(TEXT), *"abcdef"} - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=["[UNK]", "[CLS]", "[SEP]"], initial_alphabet=alphabet
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    backend.add_tokens(["to stop"])
    return backend


def byte_fallback():
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted({*"".join(TEXT), *"abcdef"} - {" ", "日"})
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return backend


def metaspace():
    backend = byte_fallback()
    backend.decoder = decoders.Metaspace()
    return backend


STOPS = [["stop"], ["top", "era", " stop", "stopp"], ["日本", "él"], ["tot", "ototo", "e"], [", which", "本", " t"]]


@pytest.mark.parametrize("kind", [word_piece, byte_level, byte_fallback, metaspace])
def test_stop_strings(kind):
    backend = kind()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer, size = Backed(backend), backend.get_vocab_size()
    rng = np.random.default_rng(0)
    # Tokens of the letters in the stop strings, mostly, so that these occur.
    likely = [i for t, i in backend.get_vocab().items() if set(t.strip("#▁Ġ")) <= set("stopera")]
    ids = np.where(rng.random((200, 10)) < 0.9, rng.choice(likely, (200, 10)), rng.integers(0, size, (200, 10)))
    text = backend.encode(TEXT[0], add_special_tokens=False).ids
    ids = np.concatenate([ids, [text[i : i + 10] for i in range(len(text) - 9)]]).astype(np.int32)
    hits = 0
    for strings in STOPS:
        judge = stopping_criteria.StopStringCriteria(theirs, strings)
        automaton = StopStrings.from_strings(strings, tokenizer)
        states = automaton.initial_states(ids[:, :2])
        for length in range(3, 11):
            states = advanced(automaton, states, ids[:, length - 1])
            expected = judge(torch.tensor(ids[:, :length].astype(np.int64)), None).numpy()
            np.testing.assert_array_equal(StopStrings.accepts(states), expected, err_msg=f"{strings} {length}")
            hits += expected.sum()
    assert hits > 150


def test_settings_load_in_torch_and_back(tmp_path):
    ours = GenerationConfig(
        sequence_bias=[[[1, 2], 0.5]], bad_words_ids=[[3], [4, 5]], exponential_decay_length_penalty=(5, 1.1),
        do_sample=True, suppress_tokens=[1, 2], stop_strings=["a", "b"], typical_p=0.9, min_p=0.1, num_beams=4,
        coverage_penalty=0.2, force_words_ids=[[[1], [2, 3]]], renormalize_logits=True,
    )  # fmt: skip
    transformers.GenerationConfig(**generation_to_hf(ours, {})).save_pretrained(tmp_path)
    loaded = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert loaded.bad_words_ids == [[3], [4, 5]] and loaded.sequence_bias == [[[1, 2], 0.5]]
    assert generation_from_hf(loaded.to_dict()) == ours
    # All that torch fills in where nothing is set is off or the same here.
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert generation_from_hf(defaults) == GenerationConfig(max_length=20)
