import sys
from pathlib import Path

# Shared helpers (ladder.py, torch_models.py) are plain modules beside the tests.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "parity"), str(HERE / "weights")]
