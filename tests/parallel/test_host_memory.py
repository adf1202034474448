"""Memory that XLA frees stays with the process; in processes of their own, since threads settle how memory is taken."""

import os
import resource
import subprocess
import sys

import pytest

MEGABYTES = 64
PROGRAM = f"""
import resource
import seq2seq_jax as s2s
print(s2s.keep_freed_memory())
import jax, jax.numpy as jnp
x = jnp.ones(({MEGABYTES}, 2**18), jnp.float32)
f = jax.jit(lambda x: jnp.sort(x + 1)[:, :1])
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    before = faults()
    jax.block_until_ready(f(x))
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
@pytest.mark.parametrize("kept", [True, False])
def test_a_compiled_call_faults_no_fresh_pages(kept):
    # Somebody else's decision stands, and then each call takes its temporaries from the system anew.
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    environment |= {} if kept else {"MALLOC_ARENA_MAX": "8"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    said, faults = run.stdout.split()
    pages = MEGABYTES * 2**20 // resource.getpagesize()
    assert said == str(kept)
    assert int(faults) < pages / 10 if kept else int(faults) > pages / 2, faults
