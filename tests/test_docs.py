"""What the pages say of files, names and links is true."""

import re
from pathlib import Path

import pytest

from seq2seq_jax.config import METRICS
from seq2seq_jax.config.optimizer import OPTIMIZERS
from seq2seq_jax.evaluation.metrics import compute_metrics
from seq2seq_jax.training.optimizers import ALGORITHMS

ROOT = Path(__file__).parent.parent
EXAMPLES = {"configs/x.py"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"
    for path in re.findall(r"\b((?:\w+/)+\w+\.(?:py|md))\b", text):  # whole, or as the package's rooms stand
        there = any((ROOT / base / path).is_file() for base in ("", "seq2seq_jax", "docs"))
        assert there or path in EXAMPLES, f"{page.name} names {path}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_where_to_add_what():
    """At most three files for each, and the tables that they name hold each other's names."""
    section = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Where to add what")[1]
    rows = [row.split("|")[2] for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        assert 1 <= len(re.findall(r"`[\w/<>]+\.py`", row)) <= 3, row
    assert set(ALGORITHMS) == set(OPTIMIZERS)
    texts = ["the cat sat on the mat"]
    for name, scores in METRICS.items():
        assert set(compute_metrics(texts, texts, [name]).scores) == set(scores), name
