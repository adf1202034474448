"""Writes the fixed set of torch results with which the ladder runs where there is no torch.

python scripts/make_torch_results.py --output=tests/torch_results        (needs the extra `parity`)
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import ladder  # noqa: E402
from tests.parity import torch_models  # noqa: E402

# Small ones of each family in each role; the sizes of torch_models apply to what is not named.
PAIRS = {
    "bert-bert": ({"num_hidden_layers": 2}, {"num_hidden_layers": 2}),
    "bert-gpt2": ({"num_hidden_layers": 2}, {}),
    "gpt2-bart": ({}, {}),
    "bart-bert": ({}, {"num_hidden_layers": 2}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    for name, (encoder_changes, decoder_changes) in PAIRS.items():
        encoder, decoder = name.split("-")
        model = torch_models.pair(
            encoder, decoder, seed=1, encoder_changes=encoder_changes, decoder_changes=decoder_changes
        )
        model.save_pretrained(output / name)
        batch = ladder.random_batch((model.config.encoder.vocab_size, model.config.decoder.vocab_size), seed=1)
        np.savez_compressed(output / name / "results.npz", **torch_models.results(model, batch))
        size = sum(file.stat().st_size for file in (output / name).iterdir())
        print(f"{output / name}: {size:,} bytes")


if __name__ == "__main__":
    main()
