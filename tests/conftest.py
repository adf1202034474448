import sys
from pathlib import Path

from hypothesis import settings

# Shared helpers (ladder.py, torch_models.py) are plain modules beside the tests.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "parity"), str(HERE / "weights")]

# The same examples in every run: a failure can be repeated, and a run that passed passes again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
