"""Threads that wait for each other do not hold on to cores that other work wants."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
    ids=["by default", "another count is kept", "a policy is kept"],
)
def test_waiting_threads_give_their_core_away_soon_unless_told_otherwise(given, found):
    rest = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import fl_app, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=rest | given, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [found, "False"]
