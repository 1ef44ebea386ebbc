"""What a federated round costs beside the training: 2 sites, the default network (4.8 million values), no steps.

Compares with FLARE's FedAvg recipe at its default settings, its client sending back what it received. Both run in
FLARE's simulator on this machine, one after the other. Prints medians over the rounds but for the first two.

    .venv/bin/python -m benchmarks.round_overhead [ROUNDS]
"""

import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import yaml

from fl_app.data.phantom import make_cohort
from fl_app.result import read_result

SITES = 2


def write_inputs(folder: Path, rounds: int) -> None:
    """A job without training, and each site's data."""
    job = {
        "data": {"spacing_mm": [4, 4, 5], "patch_voxels": [64, 64, 32]},
        "training": {"steps_per_round": 0},
        "federation": {"rounds": rounds},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    make_cohort(folder / "data", sites=SITES, cases=[4, 4])


def ours(folder: Path, rounds: int) -> list[float]:
    """Seconds of each round, as result.json has them."""
    write_inputs(folder, rounds)
    command = [sys.executable, "-m", "fl_app.cli", "simulate", "--config", "job.yaml", "--data", "data", "--out", "out"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return [done.seconds for done in read_result(folder / "out" / "result.json").rounds]


def recipe(folder: Path, rounds: int) -> list[float]:
    """Seconds between the starts of the rounds, as the server's log has them."""
    script = Path(__file__).with_name("peers") / "fedavg_recipe.py"
    command = [sys.executable, str(script), str(folder), str(rounds + 1), str(SITES)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    log = (folder / "peer" / "server" / "log.txt").read_text()
    # the title is centred on a line of its own, two lines below the time
    starts = [
        datetime.strptime(found, "%Y-%m-%d %H:%M:%S,%f")
        for found in re.findall(
            r"^(\S+ [\d:,]+) - FedAvg [^\n]*\n-*\n?[^\n]*Round \d+ started", log, flags=re.MULTILINE
        )
    ]
    return [(after - before).total_seconds() for before, after in pairwise(starts)]


def print_rounds(times: Mapping[str, Sequence[float]], width: int) -> None:
    """Print a line for each name: the median of its rounds' seconds, and their range."""
    for name, seconds in times.items():
        print(
            f"{name:{width}} median {statistics.median(seconds):5.2f} s a round "
            f"({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} rounds)"
        )


def main(rounds: int) -> None:
    """Run both and print."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        times = {"fedspleen": ours(Path(first), rounds)[2:], "FLARE FedAvg recipe": recipe(Path(second), rounds)[2:]}
    print_rounds(times, 20)
    medians = [statistics.median(seconds) for seconds in times.values()]
    print(f"ratio {medians[1] / medians[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
