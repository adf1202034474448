"""Many devices equal one; in a process of its own, since the device count is fixed when jax starts."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CHECKS = (
    "each device holds its part, the vocabulary padded",
    "forward and loss",
    "gradient, sharded as its parameter",
    "greedy and beam search",
    "chunked loss",
    "dropout by any generator",
    "activations are split as asked",
    "pmap",
    "training step, the optimizer's state sharded",
    "Orbax: written on one mesh, read on none and on another, and back to the same safetensors",
    "a resized vocabulary stays split",
    "a mesh that does not divide is refused",
)


def on_eight_devices(script, directory, timeout):
    """What a script here prints, run with 8 virtual devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Two runs in flight can each hold threads that the other's collective waits for.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=300",
    }
    for _ in range(2):
        fresh = tempfile.mkdtemp(dir=directory)  # a try that was broken off has left files
        command = [sys.executable, str(Path(__file__).parent / script), fresh]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        # On a busy machine with fewer cores than devices, XLA gives up a collective whose threads did not all come in
        # time; that says nothing about the code, so it gets a second try. A wrong result does not.
        if "Termination timeout for" not in run.stderr:
            break
    return run.stdout + run.stderr[-3000:]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return on_eight_devices("mesh_checks.py", tmp_path_factory.mktemp("mesh"), timeout=600)


@pytest.mark.parametrize("check", CHECKS)
def test_eight_devices_equal_one(output, check):
    assert f"held: {check}" in output, output


@pytest.mark.slow
def test_every_strategy_decodes_the_same_on_a_mesh(tmp_path):
    said = on_eight_devices("decoding_checks.py", tmp_path, timeout=3000)
    assert said.count("held: ") == 16, said
