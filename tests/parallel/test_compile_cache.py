"""--compile_cache: what one process compiled, the next one reads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Says how many programs came from the cache, and how many were put there.
PROGRAM = """
import sys
sys.path.insert(0, "scripts")
import process_flags
from absl import flags
import jax

seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
flags.FLAGS(sys.argv)
process_flags.start()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((3, 3)))
print([seen.count(f"/jax/compilation_cache/{name}") for name in ("cache_hits", "cache_misses")])
"""


def test_second_process_compiles_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, f"--compile_cache={tmp_path / 'cache'}"]
    said = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert all(run.returncode == 0 for run in said), said
    (hits, misses), (hits_again, misses_again) = (eval(run.stdout) for run in said)
    assert hits == 0 and misses > 0 and hits_again == misses and misses_again == 0, said
