"""Scripts run in processes of their own with virtual devices, whose number is fixed when jax starts."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def environment(devices):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # Two runs in flight can each hold threads that the other's collective waits for.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        " --xla_cpu_collective_call_terminate_timeout_seconds=300",
    }


def said_by(script, directory, *arguments, devices=8, timeout=600):
    """What a script here prints, given a fresh directory and arguments."""
    for _ in range(2):
        fresh = tempfile.mkdtemp(dir=directory)  # a try that was broken off has left files
        command = [sys.executable, str(HERE / script), fresh, *arguments]
        run = subprocess.run(command, env=environment(devices), capture_output=True, text=True, timeout=timeout)
        # On a busy machine with fewer cores than devices, XLA gives up a collective whose threads did not all come in
        # time; that says nothing about the code, so it gets a second try. A wrong result does not.
        if "Termination timeout for" not in run.stderr:
            break
    return run.stdout + run.stderr[-3000:]
