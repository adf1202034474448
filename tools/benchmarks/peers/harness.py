"""The loop of a peer: one JSON object a line in, one out. Standard library only, since peers share no packages."""

import importlib.metadata
import json
import os
import platform
import sys
import time


def serve(load, kinds, packages, device_memory=None):
    """Answers requests until standard input ends.

    The first line in is the setting: its "device" is "cpu" or "gpu", the rest is `load`'s. The first line out tells the
    versions. After that each line in is a request with a "kind", and each line out has "seconds" (of the work alone),
    "peak" (bytes), "peak_since" ("call", or "start" where the peak cannot be reset) and what the work returned.

    Args:
      load: called with the setting, returns a state.
      kinds: a function by kind: called with the state and a request, returns a function that does the work once and
        returns a dict to answer with. It is called again only when the request changes.
      packages: distributions whose versions are told.
      device_memory: two functions for a GPU: reset() the peak, which returns whether it could, and peak() in bytes.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    setting = json.loads(sys.stdin.readline())
    state = load(setting)
    reset, peak = device_memory if setting["device"] == "gpu" else (reset_resident, peak_resident)
    versions = {name: importlib.metadata.version(name) for name in packages}
    _answer(out, {"versions": {"python": platform.python_version(), **versions}})
    last, work = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if request != last:
            last, work = request, kinds[request["kind"]](state, request)
        since = "call" if reset() else "start"
        begin = time.perf_counter()
        done = work()
        seconds = time.perf_counter() - begin
        _answer(out, {"seconds": seconds, "peak": peak(), "peak_since": since, **done})


def _answer(out, content):
    print(json.dumps(content), file=out, flush=True)


def reset_resident():
    """Lets `peak_resident` count from here; returns whether the system allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_resident():
    """The largest resident memory of this process in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def written(sequences, pad):
    """How many tokens stand behind the start token, the tail of pads at the right not counted.

    Args:
      sequences: an int array [batch, length] of numpy; a search that ended early leaves pads in all rows.
    """
    columns = (sequences[:, 1:] != pad).any(axis=0)
    return int(sequences.shape[0] * (columns.nonzero()[0].max(initial=-1) + 1))
