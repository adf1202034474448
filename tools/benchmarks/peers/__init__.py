"""Programs that do one and the same piece of work in environments of their own; `processes.py` runs them.

Each is run as a file by the Python of its environment, so it imports `harness` from its own directory and nothing of
this package, ours excepted.
"""
