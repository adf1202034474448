"""Flags that scripts have in common: what is refused, and that nothing is silently ignored."""

import sys
from pathlib import Path

import jax
import pytest
from absl import app, flags
from absl.testing import flagsaver

SCRIPTS = str(Path(__file__).parent.parent.parent / "scripts")


@pytest.fixture(scope="module")
def shared():
    """scripts/process_flags.py and scripts/mesh_flags.py as modules."""
    sys.path.insert(0, SCRIPTS)
    import mesh_flags
    import process_flags

    yield process_flags, mesh_flags
    sys.path.remove(SCRIPTS)


@pytest.fixture
def given(shared):
    """Sets flags, until the test ends."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():
        yield lambda **values: [setattr(flags.FLAGS, name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_processes": 2}, "--num_processes=2 is for --distributed; give both or neither"),
        ({"process_id": 0}, "--process_id=0 is for --distributed"),  # 0 is a value too
        ({"coordinator": "here:1"}, "--coordinator=here:1 is for --distributed"),
    ],
)
def test_flags_of_distributed_without_it(shared, given, values, message):
    given(**values)
    with pytest.raises(app.UsageError, match=message):
        shared[0].start()


def test_processes_that_share_lines_need_no_distributed(shared, given):
    given(num_processes=2, process_id=1)
    shared[0].start(shares=True)
    given(coordinator="here:1")
    with pytest.raises(app.UsageError, match="--coordinator=here:1 is for --distributed"):
        shared[0].start(shares=True)


def test_sizes_of_a_mesh(shared, given):
    devices = jax.devices() * 6  # as a number only
    given(fsdp=2, tensor=2)
    with pytest.raises(
        app.UsageError,
        match=r"--fsdp=2 --tensor=2 make groups of 4 devices, and there are 6; give sizes whose .* 1, 2, 3, 6$",
    ):
        shared[1].mesh_over(devices)
    for name in ("fsdp", "tensor"):
        with pytest.raises(flags.IllegalFlagValueError, match=name):
            given(**{name: 0})
