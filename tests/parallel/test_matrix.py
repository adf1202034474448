"""Every kind of mesh takes the steps of one device."""

import pytest

from tests.parallel.virtual_devices import said_by

# data x fsdp x tensor, or replica x data x fsdp x tensor.
MESHES = ("2x2x2", "8x1x1", "1x8x1", "1x1x4", "2x1x4", "2x2x2x1")


@pytest.mark.slow
def test_every_mesh_takes_the_steps_of_one_device(tmp_path):
    """The same losses of 5 AdamW steps and the same gradients; what is split is split as the table says."""
    said = said_by("matrix_checks.py", tmp_path, *MESHES, timeout=2400).splitlines()
    held = [*(f"held: {mesh}" for mesh in MESHES), "held: 2x2x2 accumulated"]
    assert set(held) <= set(said), "\n".join(said)
