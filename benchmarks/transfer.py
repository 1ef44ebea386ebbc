"""Bytes between the server and its sites, and the Dice that is reached with them: 32, 8 and 3 bits a value.

Three sites of the phantom cohort train a small U-Net together, with the workflow and the sites' work of a real
federation, in this process. Each message is counted as FLARE writes it (`fobs` with its tensor decomposer). The
alternative is ``federation.transfer_bits: 32``: whole fp32 models to the sites, fp32 differences back. Printed are the
share of its bytes, without the final test's model, and the mean test Dice; with several seeds the median of them and of
the differences to 32 bits with the same seed. FLARE adds some 240 bytes a tensor, which a small network feels: the
last lines are one message of the default network.

    .venv/bin/python -m benchmarks.transfer [SEEDS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs

from fl_app.config import Job
from fl_app.data.phantom import make_cohort
from fl_app.messages import PREPARE, TRAIN, VALIDATE
from fl_app.networks.registry import build_network
from fl_app.rehearsal import rehearsal_channel, rehearse
from fl_app.site import SiteSettings
from fl_app.transfer import Rounding
from server.channel import Answer, Channel, Payload, Values
from server.exchange import Exchange

SITES, CASES, ROUNDS, STEPS = 3, 8, 20, 20
BITS = (32, 8, 3)


def job(seed: int, bits: int) -> Job:
    """A network and a grid that one core trains in seconds."""
    return Job.model_validate(
        {
            "seed": seed,
            "data": {"spacing_mm": [6, 6, 8], "patch_voxels": [32, 32, 16], "test_fraction": 0.4},
            "network": {"channels": [16, 32, 64], "residual_units": 1},
            "training": {"steps_per_round": STEPS, "batch_size": 2, "learning_rate": 0.02, "precision": "fp32"},
            "federation": {"rounds": ROUNDS, "transfer_bits": bits},
        }
    )


class Counted:
    """A channel that counts what its messages take, written by FLARE."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.bytes: Counter[str] = Counter()

    def ask(self, task: str, payloads: Mapping[str, Payload], exchange: Exchange, answer: Answer) -> None:
        """See `server.channel.Channel`."""

        def counted(site: str, values: Values, report: dict[str, Any]) -> str | None:
            if task in (PREPARE, TRAIN, VALIDATE):
                self.bytes["to the server"] += written(values, {"report": report})
            return answer(site, values, report)

        for payload in payloads.values():
            if task in (PREPARE, TRAIN, VALIDATE):
                self.bytes["to the sites"] += written(payload.values, dict(payload.facts))
        self._channel.ask(task, payloads, exchange, counted)


def written(values: Values, facts: dict[str, Any]) -> int:
    """Bytes of a message."""
    return len(fobs.dumps(DXO(DataKind.WEIGHTS, data=dict(values), meta=facts).to_shareable()))


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description="Bytes and Dice with 32, 8 and 3 bits a value.")
    parser.add_argument("seeds", type=int, nargs="?", default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("server").setLevel(logging.WARNING)
    fobs.register(TensorDecomposer)
    runs: dict[int, list[dict[str, Any]]] = {bits: [] for bits in BITS}
    with tempfile.TemporaryDirectory() as folder:
        made = make_cohort(Path(folder) / "cohort", sites=SITES, cases=[CASES] * SITES, detail=0.5)
        for seed in range(arguments.seeds):
            for bits in BITS:
                started = time.process_time()
                described = job(seed, bits)
                sites = {
                    f"site-{number + 1}": SiteSettings(data=data, threads=1, cache=Path(folder) / "cache")
                    for number, data in enumerate(made)
                }
                channel = Counted(rehearsal_channel(described, sites))
                result = rehearse(described, sites, Path(folder) / f"{seed}-{bits}", channel)
                assert result.final is not None
                runs[bits].append({"dice": result.final.mean_dice, **channel.bytes})
                spent = time.process_time() - started
                print(f"seed {seed}, {bits} bits: {runs[bits][-1]} ({spent:.0f} s)", file=sys.stderr, flush=True)
    table(runs)
    default_network()
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=2) + "\n")


def table(runs: Mapping[int, list[dict[str, Any]]]) -> None:
    """Print a line for each number of bits."""
    heads = ("to the sites", "to the server")
    print("bits  MB to the sites  to the server  share of bytes    Dice  difference")
    whole = runs[BITS[0]]
    for bits, found in runs.items():
        sizes = [statistics.median(run[head] for run in found) / 1e6 for head in heads]
        share = sum(sizes) / sum(statistics.median(run[head] for run in whole) / 1e6 for head in heads)
        dice = statistics.median(run["dice"] for run in found)
        apart = statistics.median(run["dice"] - other["dice"] for run, other in zip(found, whole, strict=True))
        print(f"{bits:>4} {sizes[0]:>16.2f} {sizes[1]:>14.2f} {share:>15.1%} {dice:>7.4f} {apart:>+11.4f}")


def default_network() -> None:
    """Print what one message of the default network takes."""
    values = dict(build_network(Job()).state_dict())
    whole = written(values, {})
    for bits in BITS[1:]:
        chance = torch.Generator().manual_seed(0)
        change = {name: 1e-3 * torch.randn(value.shape, generator=chance) for name, value in values.items()}
        size = written(Rounding(bits).encode(change), {})
        print(
            f"default network, {bits} bits: {size / 1e6:.2f} MB a message of {whole / 1e6:.2f} MB, {size / whole:.1%}"
        )


if __name__ == "__main__":
    main()
