"""A pytest plugin (`-p tests.rotation`): long tests in an order that the date gives, for so many minutes.

Files come in another order each day, so that all of them come round within some days, though no run has time for all.
The golden ratio spreads the first file of successive days evenly over the list.
"""

import datetime
import time

import pytest

LEFT = "left for another day"
GOLDEN = 0.6180339887


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, default=25.0, help="no test begins after so many minutes")
    parser.addoption(
        "--date", default=datetime.date.today().isoformat(), help="the day (YYYY-MM-DD) that gives the order"
    )


def rotated(files: list[str], day: datetime.date) -> list[str]:
    """The files in the order of a day."""
    start = int(len(files) * (day.toordinal() * GOLDEN % 1.0))
    return files[start:] + files[:start]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    files = list(dict.fromkeys(item.path for item in items))
    order = rotated(sorted(files), datetime.date.fromisoformat(config.getoption("date")))
    place = {file: i for i, file in enumerate(order)}
    items.sort(key=lambda item: place[item.path])


def pytest_collection_finish(session):
    session.config.begun = time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.monotonic() - item.config.begun > 60 * item.config.getoption("minutes"):
        pytest.skip(LEFT)


def pytest_terminal_summary(terminalreporter):
    count = lambda outcome: len(terminalreporter.stats.get(outcome, []))
    skipped = terminalreporter.stats.get("skipped", [])
    left = sum(LEFT in str(report.longrepr) for report in skipped)
    run = count("passed") + count("failed") + count("error")
    terminalreporter.write_line(
        f"long tests: {run} run, {left} {LEFT}, {len(skipped) - left} skipped for other reasons"
    )
