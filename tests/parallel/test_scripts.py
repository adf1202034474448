"""Scripts whose pair is split over devices do what they do on one."""

import pytest

from tests.parallel.virtual_devices import said_by

CHECKS = {
    "generate": ("the output of one device", "the settings of one device, so that a partial output goes on"),
    "evaluate": ("the scores of one device", "the loss in chunks"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", CHECKS)
def test_a_pair_that_is_split(tmp_path, script):
    said = said_by("script_checks.py", tmp_path, script)
    for check in ("each device holds its part of the weights", *CHECKS[script], "sizes that do not divide are refused"):
        assert f"held: {check}\n" in said, said
