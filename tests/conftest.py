import os
import tempfile
from pathlib import Path

# Equal programs are compiled once, for all tests, their processes and the next run. Before anything imports jax.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "seq2seq_jax_test_compilations"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# The programs are small: most of the time is LLVM's, half of which this saves. XLA_FLAGS= tests what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

from hypothesis import settings

# The same examples in every run: a failure can be repeated, and a run that passed passes again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
