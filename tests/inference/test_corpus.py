"""Batches of a corpus, with a pair that echoes its input in place of a model."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq_jax.config import GenerationConfig
from seq2seq_jax.inference.corpus import DecodingProgress, bucket_width, decode_encoded, decode_ids, plan_batches

START, PAD, EOS = 1, 0, 2


def config(max_positions=512, length_limit=None):
    encoder = SimpleNamespace(max_positions=max_positions, length_limit=length_limit)
    return SimpleNamespace(encoder=encoder, pad_token_id=PAD, eos_token_ids=(EOS,))


class Echo:
    """Writes each source `copies` times, with an end token, and remembers what it was asked for."""

    def __init__(self, copies=1):
        self.config, self.copies, self.calls, self.keys, self.compiled = config(), copies, [], [], []
        self.model = SimpleNamespace(config=self.config)
        self.generation_config = GenerationConfig()

    def compile_generate(self, shape, generation, rng, tokenizer):
        self.compiled.append(shape)

    def generate(self, input_ids, mask, generation, rng, tokenizer, compact):
        assert input_ids.shape in self.compiled
        self.calls.append((input_ids.shape, mask.sum(axis=1).tolist()))
        self.keys.append(rng)
        assert isinstance(tokenizer, Numbers), "needed with stop_strings"
        out = np.full((len(input_ids) * self.copies, input_ids.shape[1] + 2), PAD)
        for i, (ids, length) in enumerate(zip(input_ids, mask.sum(axis=1))):
            for row in range(i * self.copies, (i + 1) * self.copies):
                out[row, : length + 2] = [START, *ids[:length], EOS]
        scores = np.arange(len(out)) % self.copies if self.copies > 1 else None
        return SimpleNamespace(sequences=out, sequences_scores=scores)


class Numbers:
    def decode(self, ids, skip_special_tokens):
        return " ".join(str(i) for i in ids if i > EOS)


def echoed(row):
    return " ".join(map(str, row))


lengths = st.lists(st.integers(1, 500), max_size=40)


@given(lengths, st.sampled_from([1, 3, 16]), st.sampled_from([None, 100, 4096]))
def test_plan(lengths, batch_size, batch_tokens):
    plan = plan_batches(lengths, config(), batch_size, batch_tokens)
    assert sorted(i for batch in plan for i in batch.texts) == list(range(len(lengths)))
    assert len({(batch.rows, batch.width) for batch in plan}) == len({batch.width for batch in plan})
    for number, batch in enumerate(plan):
        longest = max(lengths[i] for i in batch.texts)
        assert longest <= batch.width == bucket_width(longest, config()) <= max(32, 1.5 * longest)
        assert batch.rows == len(batch.texts) or number == len(plan) - 1, "only the last one is filled up"
        assert batch.rows == batch_size or batch.rows & (batch.rows - 1) == 0
        if batch_tokens is not None and batch.rows > 1:
            assert batch.rows * batch.width <= batch_tokens
        if batch_tokens is not None and batch.rows < batch_size:
            assert min(2 * batch.rows, batch_size) * batch.width > batch_tokens


def test_widths():
    assert [bucket_width(n, config()) for n in (1, 32, 33, 48, 49, 65, 97, 200, 500)] == [
        32, 32, 48, 48, 64, 96, 128, 256, 512
    ]  # fmt: skip
    assert len({bucket_width(n, config(2**20)) for n in range(1, 2**20, 13)}) == 31
    assert bucket_width(20, config(30)) == 30
    limited = config(4096, length_limit=(700, "..."))
    assert bucket_width(600, limited) == 700 and bucket_width(701, limited) == 768


@pytest.mark.parametrize("batch_size, batch_tokens", [(0, None), (1, 0)])
def test_bad_sizes(batch_size, batch_tokens):
    with pytest.raises(ValueError, match=r"batch_(size|tokens) is 0; give a whole number from 1 up"):
        plan_batches([1], config(), batch_size, batch_tokens)


def test_order_is_restored_and_last_batch_filled():
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 99, rng.integers(1, 60)).tolist() for _ in range(21)]
    pair = Echo()
    assert decode_ids(pair, rows, Numbers(), PAD, batch_size=4) == [[echoed(row)] for row in rows]
    shapes = [shape for shape, _ in pair.calls]
    assert {rows for rows, _ in shapes} == {4} and {width for _, width in shapes} <= {32, 48, 64}
    filled = pair.calls[-1][1]
    assert len(filled) == 4 and len(set(filled)) == 1, "one text, four times"
    assert decode_ids(pair, rows[:2], Numbers(), PAD, batch_size=4) == [[echoed(row)] for row in rows[:2]]
    assert pair.calls[-1][0][0] == 2, "fewer texts than a batch has rows"
    assert decode_ids(pair, [], Numbers(), PAD) == []


def test_several_outputs_scores_and_tokens():
    rows = [[5], [6, 7], [8, 9, 10]]
    decoded = decode_encoded(Echo(copies=2), rows, Numbers(), PAD, batch_size=2, scores=True)
    assert [each.texts for each in decoded] == [[echoed(row)] * 2 for row in rows]
    assert [each.scores for each in decoded] == [[0, 1]] * 3
    assert [each.tokens for each in decoded] == [4, 6, 8], "end tokens count, filled rows do not"
    assert decode_encoded(Echo(copies=2), rows, Numbers(), PAD, batch_size=2)[0].scores is None


def test_each_batch_draws_from_its_own_key():
    pair = Echo()
    decode_ids(pair, [[5]] * 6, Numbers(), PAD, batch_size=2, rng=jax.random.key(3), do_sample=True)
    assert len({tuple(jax.random.key_data(key).tolist()) for key in pair.keys}) == 3


def test_progress():
    shown = {}
    bar = SimpleNamespace(
        n=0, initial=0, set_postfix=lambda tokens_s, refresh: shown.update(rate=tokens_s),
        update=lambda count: shown.update(count=count),
    )  # fmt: skip
    progress = DecodingProgress(bar)
    progress.skip(7)
    decode_ids(Echo(), [[5, 6]] * 3, Numbers(), PAD)
    progress.add(decode_encoded(Echo(), [[5, 6]] * 3, Numbers(), PAD, batch_size=3))
    assert shown["count"] == 3 and float(shown["rate"]) > 0 and bar.n == bar.initial == 7


def test_shapes_are_compiled_ahead_once():
    pair = Echo()
    decode_ids(pair, [[5] * n for n in (3, 40, 41, 60, 70, 4, 5, 6)], Numbers(), PAD, batch_size=2)
    assert pair.compiled == list(dict.fromkeys(shape for shape, _ in pair.calls))
    assert len(pair.calls) > len(pair.compiled) > 1


def test_what_a_compilation_raises_is_raised():
    class Broken(Echo):
        def compile_generate(self, shape, generation, rng, tokenizer):
            if shape[1] == 32:
                raise ValueError("no room for 32")
            super().compile_generate(shape, generation, rng, tokenizer)

    pair = Broken()
    with pytest.raises(ValueError, match="no room for 32"):
        decode_ids(pair, [[5] * 40, [5]], Numbers(), PAD, batch_size=1)
    assert len(pair.calls) == 1, "the shape before it was decoded"
