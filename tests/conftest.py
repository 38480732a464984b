"""Settings for every test process."""

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers of pytest-xdist share the cores: more than one thread each would only make them wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine than about the code: durations are for the benchmarks.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")
