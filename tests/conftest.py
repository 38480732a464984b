"""Settings for every test process."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers of pytest-xdist share the cores: more than one thread each would only make them wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
