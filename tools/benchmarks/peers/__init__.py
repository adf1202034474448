"""Programs of the systems that are compared; each does the same work in an environment of its own.

`processes.py` runs each as a file with the Python of its environment. So a program imports `harness` from this
directory, and only ours imports our packages.
"""
