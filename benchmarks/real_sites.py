"""What real processes over mutual TLS cost: seconds until server and sites are up, and a round without training.

Two sites, the default network (4.8 million values), no steps. Compares with the same job in FLARE's simulator, one
after the other, as often as asked. Prints medians over all repetitions; rounds but for the first two of each run.

    .venv/bin/python -m benchmarks.real_sites [REPETITIONS] [ROUNDS]
"""

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.round_overhead import SITES, ours, print_rounds, write_inputs
from fl_app.result import read_result
from provisioning.consortium import parse_consortium
from provisioning.provision import provision

LEAD = "lead@example.org"
COMMAND = [sys.executable, "-m", "fl_app.cli"]


@contextmanager
def started(folder: Path, words: str, *arguments: str) -> Iterator[float]:
    """A command in the background; seconds until it has said these words."""
    begin = time.monotonic()
    log = folder / f"{arguments[0]}-{Path(arguments[-1]).name}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=output, stderr=output)
    try:
        while words not in log.read_text():
            if process.poll() is not None or time.monotonic() - begin > 120:
                raise SystemExit(log.read_text())
            time.sleep(0.02)
        yield time.monotonic() - begin
    finally:
        process.terminate()
        process.wait()


def real(folder: Path, rounds: int) -> tuple[dict[str, float], list[float]]:
    """Seconds until server and sites, one after the other, were up; and of each round, as result.json has them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sites = "".join(f"\n  - {{name: site-{n}, organisation: hospital_{n}}}" for n in range(1, SITES + 1))
    people = f"administrators: [{{email: {LEAD}, role: lead}}]"
    text = f"name: benchmark\nserver: {{hosts: [localhost], port: {port}}}\nsites:{sites}\n{people}\n"
    provision(parse_consortium(text), folder / "consortium")
    kits = folder / "consortium" / "kits"
    write_inputs(folder, rounds)
    for number in range(1, SITES + 1):
        (kits / f"site-{number}" / "site.yaml").write_text(f"data: {folder}/data/site-{number}\nthreads: 1\n")
    with (
        started(folder, "ready at", "server", "start", str(kits / "server")) as server,
        started(folder, "registered with", "client", "start", str(kits / "site-1")) as first,
        started(folder, "registered with", "client", "start", str(kits / "site-2")) as second,
    ):
        submit = [*COMMAND, "submit", "job.yaml", "--kit", str(kits / LEAD), "--out", "out"]
        subprocess.run(submit, cwd=folder, check=True, capture_output=True)
    rounds_done = read_result(folder / "out" / "result.json").rounds
    return {"server": server, "site-1": first, "site-2": second}, [done.seconds for done in rounds_done]


def main(repetitions: int, rounds: int) -> None:
    """Run all and print."""
    starts: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {"real sites": [], "simulator": []}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            up, there = real(Path(first), rounds)
            seconds["real sites"] += there[2:]
            seconds["simulator"] += ours(Path(second), rounds)[2:]
        for name, taken in up.items():
            starts.setdefault(name, []).append(taken)
    for name, waits in starts.items():
        print(
            f"{name:12} median {statistics.median(waits):5.2f} s until it was up ({min(waits):.2f} to {max(waits):.2f})"
        )
    print_rounds(seconds, 12)
    medians = [statistics.median(taken) for taken in seconds.values()]
    print(f"ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[1:]]
    main(*(numbers + [3, 12][len(numbers) :]))
