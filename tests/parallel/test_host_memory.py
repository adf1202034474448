"""A process that computes on a CPU takes no new memory for each step."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from seq2seq_jax.models.cpu import keep_memory

kept = sys.argv[1] == "keep" and keep_memory()
step = jax.jit(lambda x: (jnp.tanh(x[:, None] * x) @ jnp.cos(x[:, None] - x)).sum(0))  # temporaries of 16 MiB each
x = jnp.arange(2048.0)
faults = []
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), sorted(faults)[5])  # of most steps: the heap takes some to settle
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_steps_use_the_memory_of_the_step_before():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        return tuple(map(int, done.stdout.split()))

    (_, given_back), (kept, held) = faults("leave"), faults("keep")
    assert kept
    assert given_back > 2 * 4096, "pages of 4 KiB for two of them, or the program shows nothing"
    assert held < given_back / 20
