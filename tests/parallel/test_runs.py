"""Whole runs on several devices."""

import pytest

from seq2seq_jax.config import MeshConfig
from tests.parallel.virtual_devices import said_by

RUNS = (
    "pmap",
    "pmap, stopped, on by pmap",
    "pmap, stopped, on by jit",
    "fsdp, stopped, on by pmap",
    "fsdp, stopped, on over replicas",
)


@pytest.mark.slow
def test_runs_by_jit_and_pmap_and_from_one_to_the_other(tmp_path):
    """The same losses, scores and exports; and one program of the step for each shape of batches, whatever came before
    it: an evaluation, a checkpoint of another mesh."""
    said = said_by("run_checks.py", tmp_path, timeout=2400)
    assert {f"held: {run}" for run in RUNS} <= set(said.splitlines()), said


def test_pmap_splits_data_alone():
    assert MeshConfig(mode="pmap", data=4).mode == "pmap"
    with pytest.raises(
        ValueError, match=r"over data alone, and mesh.fsdp is 2, mesh.tensor is -1; give 1, or mesh.mod"
    ):
        MeshConfig(mode="pmap", fsdp=2, tensor=-1, data=1)
    with pytest.raises(ValueError, match=r"mesh.mode 'pmapp' is unknown: did you mean 'pmap'"):
        MeshConfig(mode="pmapp")
