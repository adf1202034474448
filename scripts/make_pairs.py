"""Cuts the text pairs that the package ships from a full set of Debian descriptions.

scripts/make_pairs.py --source=DIR --output=seq2seq_jax/data/pairs

DIR holds synopsis.train.jsonl.xz and synopsis.validation.jsonl.xz with the fields id, source, document and summary.
"""

import hashlib
import json
import lzma
from pathlib import Path

import command
from absl import flags

COUNTS = {"train": 12_000, "validation": 400}
LONGEST = 700
SOURCE = flags.DEFINE_string("source", None, "The directory of the full set.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The directory to write.", required=True)
flags.adopt_module_key_flags(command)


def sample(source: Path, count: int) -> list[dict]:
    """The `count` fitting pairs whose ids hash lowest: a fair sample that does not depend on the file's order."""
    with lzma.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if len(row["document"]) <= LONGEST]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    return [{name: row[name] for name in ("id", "document", "summary")} for row in rows[:count]]


def main(argv: list[str]) -> None:
    command.check_no_arguments(argv)
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        name = f"synopsis.{split}.jsonl.xz"
        rows = sample(Path(SOURCE.value) / name, count)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (output / name).write_bytes(data)
        print(f"{name}: {len(rows)} pairs, {len(data):,} bytes")


if __name__ == "__main__":
    command.run(main)
