"""Long tests come round: each day begins elsewhere, and a run that is cut off says what it left."""

import datetime
import subprocess
import sys

from tests.rotation import rotated

FILES = [f"test_{i:02}.py" for i in range(40)]


def test_all_files_come_round():
    """With time for a quarter of the files a day, whatever the first day is."""
    for first in range(0, 2000, 37):
        days = (datetime.date(2026, 11, 30) + datetime.timedelta(days=first + i) for i in range(6))
        assert {file for day in days for file in rotated(FILES, day)[:10]} == set(FILES)


def test_what_is_left_is_counted(tmp_path):
    (tmp_path / "test_a.py").write_text("import time\ndef test_one(): time.sleep(4)\ndef test_two(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.rotation", "-n", "0", "-c", "/dev/null", "--minutes"]
    said = lambda minutes: subprocess.run([*command, minutes, str(tmp_path)], capture_output=True, text=True).stdout
    assert "long tests: 2 run, 0 left for another day" in said("1")
    assert "long tests: 1 run, 1 left for another day" in said("0.05")
