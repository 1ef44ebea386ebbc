"""Start the real thing in tests: the command line, FLARE's simulator with its processes, real files."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from tests.volumes import write_case

SMALL_JOB = {
    "name": "small",
    "data": {"spacing_mm": [4, 4, 5], "patch_voxels": [16, 16, 8], "validation_fraction": 0.2, "test_fraction": 0.3},
    "network": {"channels": [8, 16]},
    "training": {"steps_per_round": 30, "learning_rate": 0.02, "deterministic": True},
    "federation": {"rounds": 3},
}


def write_job(path, **sections):
    """Write the small job with some sections' keys changed; return the path."""
    job = {**SMALL_JOB}
    for name, changes in sections.items():
        job[name] = {**job.get(name, {}), **changes}
    path = Path(path)
    path.write_text(yaml.safe_dump(job))
    return path


def write_sites(folder, **cases):
    """Write a sub-folder for each site with as many different cases; return the folder."""
    seed = 0
    for site, count in cases.items():
        for number in range(count):
            seed += 1
            write_case(Path(folder) / site.replace("_", "-"), f"secretpatient{seed}_{number}", seed)
    return Path(folder)


def fedspleen(*arguments, **options):
    """Run the command line to its end; stdout and stderr as text."""
    command = [sys.executable, "-m", "fl_app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def start_fedspleen(*arguments, **options):
    """Start the command line and return the process."""
    command = [sys.executable, "-m", "fl_app.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def processes_about(folder):
    """Command lines of the living processes that name a folder, but for this one and its ancestors."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.info["pid"] not in own and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found
