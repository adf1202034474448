"""The memory that reading a checkpoint takes, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_peak_is_tree_and_one_parameter_and_one_tensor(devices):
    command = [sys.executable, "scripts/benchmark.py", "load", f"--devices={devices}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    row = [cell.strip() for cell in run.stdout.splitlines()[-1].strip("|").split("|")]
    tree, bound, peak, held = map(int, row[1:5])
    assert peak < bound
    assert held < 1.05 * tree / devices
