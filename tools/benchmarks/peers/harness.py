"""The loop of a peer: reads JSON objects line by line and answers each with one. It uses the standard library only,
because the peers share no packages."""

import importlib.metadata
import json
import os
import platform
import sys
import time


def serve(load, kinds, packages, device_memory=None):
    """Answers requests until standard input ends.

    The first line read is the setting: "device" is "cpu" or "gpu", the other fields are for `load`. The first line
    written has the versions. Then each line read is a request with a "kind". Its answer has "seconds" (of the work
    alone), "peak" (bytes), "peak_since" ("call", or "start" if the peak cannot be reset) and what the work returned.

    Args:
      load: a function of the setting; returns a state.
      kinds: for each kind a function of the state and a request. It returns a function that does the work once and
        returns the fields of the answer. It is called again only when the request changes.
      packages: distributions whose versions are written.
      device_memory: for a GPU, reset(), which resets the peak and returns whether it could, and peak() in bytes.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that output of libraries does not mix with the answers
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
    """Makes `peak_resident` count from now on; returns whether the system allows it."""
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


def count_tokens(sequences, pad):
    """How many tokens follow the start tokens, without the columns at the right that are pads in all rows.

    Args:
      sequences: a numpy int array [batch, length].
    """
    columns = (sequences[:, 1:] != pad).any(axis=0)
    return int(sequences.shape[0] * (columns.nonzero()[0].max(initial=-1) + 1))
