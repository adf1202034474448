"""Text in, text out, through a pair of ours or one of torch's.

From the command line:   scripts/generate.py --model=runs/quickstart --text="A package that ..."
From a file:             scripts/generate.py --model=DIR --input=articles.txt --output=summaries.txt
                         scripts/generate.py --model=DIR --input=articles.jsonl --field=text --output=summaries.txt
                         scripts/generate.py --model=DIR --input=articles.csv.gz --field=text --output=summaries.txt
From standard input:     cat articles.txt | scripts/generate.py --model=DIR

One text is one line (which only "\\n" ends), or one record of a .jsonl, .csv, .tsv or .parquet file, with the text
under --field (within objects: a.b); any but Parquet may be compressed (.gz, .bz2, .xz, .zst). Output n is that of text
n: a blank line is an empty text, but in .jsonl an error (at its end nothing), and in CSV and TSV nothing.

num_return_sequences outputs are as many lines. DIR is the workdir of a run, a directory that
save_pretrained or torch wrote, or a hub id. A workdir's way with texts (prefix, greatest length) is followed. The
model's generation_config.json says how to decode, and --set changes it: --set=num_beams=4 --set=max_new_tokens=60

The best of 16 samples by minimum Bayes risk:
                         scripts/generate.py ... --mbr=chrf --set=do_sample=true --set=num_return_sequences=16

From a file to a file, any size fits, and the same command again goes on after a stop of any kind. Several processes
share the work, each on its own devices: the same command in each, with --num_processes=N --process_id=0 ... N-1 where
they see a common disk, and with --distributed (and --coordinator) where jax has to start them together.

A model that one device does not hold is split over several: --tensor=4, --fsdp=2, or both. Their product divides the
number of devices of a process, since each holds the whole model on its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import command
import mesh_flags
import model_flags
import process_flags
from absl import app, flags

from seq2seq_jax.inference.mbr import UTILITIES

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from seq2seq_jax.inference.text_windows import TextWindows
    from seq2seq_jax.inference.window_decoder import WindowDecoder
    from seq2seq_jax.inference.windowed_output import ProcessShare

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(command)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(mesh_flags)
flags.adopt_module_key_flags(process_flags)
flags.DEFINE_multi_string("text", [], "A text; may be given again for more.")
flags.DEFINE_string(
    "input", None, "A file of texts, one a line, or of records (see above); '-' or nothing: standard input."
)
flags.DEFINE_string("field", None, "Of a file of records: where the text stands; default: as in training.")
flags.DEFINE_string("output", None, "A file for the outputs, one a line; nothing: standard output.")
flags.DEFINE_integer("batch_tokens", 8192, "At most so many source tokens (rows * width) at once.", lower_bound=1)
flags.DEFINE_bool("compact", False, "Finished texts leave the batch: quicker on large files, more to compile.")
flags.DEFINE_integer(
    "window", None, "Texts read, decoded and written at a time; default: 64 * batch_size.", lower_bound=1
)
flags.DEFINE_integer("seed", 0, "Of sampling.")
flags.DEFINE_bool("scores", False, 'Write {"line": ..., "text": ..., "score": ...}, not the text alone.')
flags.DEFINE_enum("mbr", None, sorted(UTILITIES), "Write the output that agrees best with the others, by this utility.")


def process_share() -> ProcessShare:
    """This process's part of the work."""
    import jax

    from seq2seq_jax.inference.windowed_output import ProcessShare

    process_flags.start(shares=True)
    if FLAGS.distributed:
        return ProcessShare(jax.process_index(), jax.process_count())
    if (FLAGS.num_processes is None) != (FLAGS.process_id is None):
        raise app.UsageError("one of --num_processes and --process_id is missing; give both")
    index, count = FLAGS.process_id or 0, FLAGS.num_processes or 1
    if index >= count:
        raise app.UsageError(f"--process_id={index} is not below --num_processes={count}; count from 0")
    return ProcessShare(index, count)


def make_decoder(mesh: Mesh) -> tuple[WindowDecoder, str | None]:
    """The decoder of lines, and the field of the texts in a file of records."""
    from seq2seq_jax.inference.window_decoder import WindowDecoder

    pretrained, tokenizers, data = model_flags.load(mesh)
    prefix, longest, field = FLAGS.source_prefix, FLAGS.max_source_length, FLAGS.field
    if data is not None:
        prefix = data.source_prefix if prefix is None else prefix
        longest = data.max_source_length if longest is None else longest
        field = field or data.source_field
    decoder = WindowDecoder(
        pretrained.for_decoding(),
        tokenizers,
        window=FLAGS.window or 64 * FLAGS.batch_size,
        batch_size=FLAGS.batch_size,
        batch_tokens=FLAGS.batch_tokens,
        compact=FLAGS.compact,
        source_prefix=prefix or "",
        max_source_length=longest,
        seed=FLAGS.seed,
        scores=FLAGS.scores,
        mbr=FLAGS.mbr,
    )
    return decoder, field


def from_file(decoder: WindowDecoder, lines: TextWindows, share: ProcessShare) -> None:
    """Decodes a file to a file, or to standard output."""
    from seq2seq_jax.inference.corpus import DecodingProgress
    from seq2seq_jax.inference.windowed_output import write_windows
    from seq2seq_jax.parallel.progress import progress_bar

    numbers = range(share.index, len(lines.offsets), share.count)
    with progress_bar(total=sum(map(lines.size, numbers)), desc="decode", unit="line") as bar:
        progress = DecodingProgress(bar)
        content = lambda number: decoder(number, lines.read(number), progress.add)
        if FLAGS.output is None:
            for number in numbers:
                sys.stdout.write(content(number))
                sys.stdout.flush()
            return
        settings = {
            "input": {"lines": lines.count, "content": lines.fingerprint, "field": lines.field},
            **decoder.settings(),
        }
        write_windows(
            Path(FLAGS.output),
            len(lines.offsets),
            lambda number: content(number).encode(),
            settings,
            share=share,
            resumed=lambda number: progress.skip(lines.size(number)),
        )


def from_stream(decoder: WindowDecoder, texts: Iterator[str]) -> None:
    """Decodes texts that can be read only once, such as those of standard input."""
    from seq2seq_jax.inference.corpus import DecodingProgress
    from seq2seq_jax.inference.text_windows import windows
    from seq2seq_jax.parallel.progress import progress_bar

    bar = progress_bar(desc="decode", unit="line", disable=FLAGS.output is None)
    with opened(FLAGS.output) as file, bar:
        progress = DecodingProgress(bar)
        for number, window in enumerate(windows(texts, decoder.window)):
            file.write(decoder(number, window, progress.add))
            file.flush()


@contextmanager
def opened(output: str | None):
    """Standard output, or a file that gets its name when all is written."""
    if output is None:
        yield sys.stdout
        return
    with open(output + ".tmp", "w", encoding="utf-8") as file:
        yield file
    os.replace(output + ".tmp", output)


def main(argv: list[str]) -> None:
    command.check_no_arguments(argv, "give texts as --text=... or in a file")

    import jax

    from seq2seq_jax.inference.text_windows import TextWindows
    from seq2seq_jax.text.files import KINDS, kind_of, text_lines

    file = FLAGS.input if FLAGS.input != "-" and not FLAGS.text else None
    has_fields = file is not None and kind_of(file) in KINDS
    if FLAGS.field is not None and not has_fields:
        raise app.UsageError(
            f"--field={FLAGS.field} is for a {', '.join(KINDS)} file; give one as --input, or leave --field out"
        )
    share = process_share()
    if share.count > 1 and (file is None or FLAGS.output is None):
        raise app.UsageError("several processes need files: give --input=FILE and --output=FILE")
    mesh = mesh_flags.mesh_over(jax.local_devices())
    with jax.set_mesh(mesh):
        decoder, field = make_decoder(mesh)
        if file is None:
            from_stream(decoder, iter(FLAGS.text) if FLAGS.text else text_lines(sys.stdin.buffer, "standard input"))
            return
        if has_fields and field is None:
            raise app.UsageError(f"where the texts stand in {file} is not known; give --field")
        lines = TextWindows.scan(file, window=decoder.window, field=field if has_fields else None)
        from_file(decoder, lines, share)


if __name__ == "__main__":
    command.run(main)
