"""Several processes that change one tree at random, in every way that the kernel has: the same ways for the same seed.

`python -m tests.workload --help` is the command; tests/workload/crew.py is the library's door.
"""
