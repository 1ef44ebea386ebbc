"""fedspleen's learning code, job description and command line."""

import os

# Threads that wait for each other give their cores away soon, as libgomp has them do where threads outnumber cores;
# with its default a step takes many times as long beside other work (benchmarks/busy_cores.py). libgomp reads it when
# torch is imported, in this process and in those that it starts.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
