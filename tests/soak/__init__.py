"""Both ends are killed and cut off, hundreds of times, while a workload runs; `python -m tests.soak --help`."""
