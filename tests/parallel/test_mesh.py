"""Many devices equal one."""

import pytest

from tests.parallel.virtual_devices import said_by

CHECKS = (
    "each device holds its part, the vocabulary padded",
    "losses and gradients",
    "parameters and optimizer state go in and come out split",
    "activations are split as asked",
    "chunked loss",
    "splash attention",
    "dropout by any generator",
    "beam search",
    "pmap",
    "a checkpoint comes back bit for bit on other meshes, and on one device",
    "Orbax: written on one mesh, read on none and on another, and back to the same safetensors",
    "a resized vocabulary stays split",
    "an optimizer with other shapes",
    "a mesh that does not divide is refused",
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return said_by("mesh_checks.py", tmp_path_factory.mktemp("mesh"))


@pytest.mark.parametrize("check", CHECKS)
def test_eight_devices_equal_one(output, check):
    assert f"held: {check}" in output, output


@pytest.mark.slow
def test_every_strategy_decodes_the_same_on_a_mesh(tmp_path):
    said = said_by("decoding_checks.py", tmp_path, timeout=3000)
    assert said.count("held: ") == 20, said


@pytest.mark.slow
def test_every_optimizer_is_split_and_goes_on_upon_another_mesh(tmp_path):
    said = said_by("optimizer_checks.py", tmp_path, timeout=3000)
    assert said.count("held: ") == 5, said
