"""One processor thread for every process that a test starts: they share the cores, and waiting for threads is slow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
