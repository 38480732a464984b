"""Sevenfold beside other servers, each in an environment of its own: `python -m benchmarks.peers`."""
