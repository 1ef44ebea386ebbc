"""One site alone until its mean validation Dice is 0.95: 32 training and 9 validation CTs of 512 x 512 x 90 voxels.

As many cases, and as large, as the Decathlon's spleen task has; they are phantoms. Ours is the trainer as a site runs
it, with the default job's network, patch and loss, and 8 patches a step. The peer is MONAI's fast training tutorial
(`benchmarks/peers/monai_fast_training.py`): everything cached on the GPU, AMP, DiceCE, Novograd, 16 patches a step.
Time counts until the Dice on the grid of 1.5 x 1.5 x 2 mm, validations included; checking, preparing and caching are
counted apart, and so are imports. The tutorial's 0.95 is the mean of the spleen's Dice and the background's, so about
0.90 for the spleen: both times are told, until that mean and until the spleen alone has the wanted Dice.

    .venv/bin/python -m benchmarks.single_site [--dice 0.95] [--limit 180] [--only fedspleen peer] [--json FILE]

``--device cpu --cases 6 3 --size 128 128 32 --dice 0.5`` tries the command itself where there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import torch

from benchmarks.preprocessing import enlarged
from benchmarks.timing import machine
from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.phantom.case import make_case
from fl_app.data.phantom.sites import character_of
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.data.site_check import check_site
from fl_app.data.site_data import SiteData
from fl_app.training.device import memory_for_cases
from fl_app.training.evaluation import predict
from fl_app.training.metrics import dice
from fl_app.training.trainer import Trainer, ready_network
from fl_app.training.trial import quickest_way

ROOT = Path(__file__).parent.parent
SLICES = 45  # of a phantom of detail 1
MEASURES = (("mean with the background", True), ("spleen", False))


@dataclass
class Reached:
    """What a training came to.

    Attributes:
        caching_seconds: checking, preparing and caching all cases.
        training_seconds: of them, in training steps.
        steps: optimiser steps by then, or by the end.
        dice: of each validation, one after the other: seconds since training began, the mean Dice of the background and
            that of the spleen.
    """

    caching_seconds: float = 0.0
    training_seconds: float = 0.0
    steps: int = 0
    dice: list[tuple[float, float, float]] = field(default_factory=list)

    def until(self, wanted: float, background: bool = False) -> float | None:
        """Seconds until the spleen's Dice, or its mean with the background's, has reached a value; none: it has not."""
        found = ((seconds, (behind + spleen) / 2 if background else spleen) for seconds, behind, spleen in self.dice)
        return next((seconds for seconds, dice in found if dice >= wanted), None)


def write_case(folder: Path, number: int, size: tuple[int, int, int]) -> Case:
    """A phantom of the first site's kind, enlarged in its planes to the wanted matrix."""
    image, label, affine = make_case(character_of(0), (0, 0, number), size[2] / SLICES)
    large, large_label = enlarged(image, label, size)
    spacing = [(held - 1) / (wanted - 1) for wanted, held in zip(size, image.shape, strict=True)]
    paths = []
    for name, voxels in (("images", large.round().astype(np.int16)), ("labels", large_label)):
        path = folder / name / f"case_{number:02}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, affine @ np.diag([*spacing, 1.0])), path)
        paths.append(path)
    return Case(f"case_{number:02}", *paths)


def write_site(folder: Path, count: int, size: tuple[int, int, int]) -> list[Case]:
    """A site of so many cases, drawn on all cores."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(min(count, cores), mp_context=get_context("spawn")) as pool:
        return list(pool.map(write_case, [folder] * count, range(count), [size] * count))


def job_of(options: argparse.Namespace) -> Job:
    """The default job with larger batches and another learning rate, validated every so many steps."""
    return Job.model_validate(
        {
            "data": {"patch_voxels": [options.patch] * 3},
            "training": {
                "steps_per_round": options.steps,
                "learning_rate": options.rate,
                "batch_size": options.batch,
            },
            "federation": {"rounds": options.rounds},
        }
    )


def ours(options: argparse.Namespace, site: Path, cases: list[Case]) -> Reached:
    """Prepare, then train and validate in turns until the Dice is reached."""
    reached, device = Reached(), torch.device(options.device)
    job = job_of(options)
    started = time.perf_counter()
    cache = site.parent / "cache"
    assert not [found for found in check_site(site, job.data, cache) if found.severity == "error"]
    held = prepare_cases(cases, job.data, cache)
    parts = held[: options.cases[0]], held[options.cases[0] :]
    data = SiteData(*parts, [], []).near(device, memory_for_cases(device))
    reached.caching_seconds = time.perf_counter() - started
    started = time.perf_counter()
    network = ready_network(job, device)
    way, _ = quickest_way(job, network, device, None)
    trainer = Trainer(job, data.training, device, "single", network, way)
    print(f"fedspleen computes in {way}", flush=True)
    for number in range(1, options.rounds + 1):
        trained = trainer.train(number, options.steps, options.rounds)
        found = [validated(trainer, case) for case in data.validation]
        reached.training_seconds += trained.seconds
        reached.steps += trained.steps
        behind, spleen = (float(np.mean(values)) for values in zip(*found, strict=True))
        reached.dice.append((time.perf_counter() - started, behind, spleen))
        tell("fedspleen", reached)
        if spleen >= options.dice or reached.dice[-1][0] > options.limit:
            break
    return reached


def validated(trainer: Trainer, case: PreparedCase) -> tuple[float, float]:
    """The Dice of the background and of the spleen, as `Trainer.score` finds the latter."""
    predicted = predict(trainer.network, case.image, trainer.job, trainer.precision).argmax(0).to(case.label.device)
    found = dice(predicted + 1, case.label[0] + 1, ("background", "spleen"))
    return found["background"], found["spleen"]


def peer(options: argparse.Namespace, cases: list[Case]) -> Reached:
    """MONAI's tutorial in a process of its own."""
    files = [{"image": str(case.image), "label": str(case.label)} for case in cases]
    plan = {
        "training": files[: options.cases[0]],
        "validation": files[options.cases[0] :],
        "patch": [options.patch] * 3,
        "window": [options.patch * 5 // 3 // 16 * 16] * 3,  # the tutorial's 160 for its 96
        "device": options.device,
        "dice": options.dice,
        "limit": options.limit,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(plan))
        script = ROOT / "benchmarks" / "peers" / "monai_fast_training.py"
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            for line in process.stdout:
                found = json.loads(line)
                reached = Reached(**{**found, "dice": [tuple(each) for each in found["dice"]]})
                tell("peer", reached)
    if process.returncode:
        sys.exit(f"benchmarks.single_site: the peer has ended with exit code {process.returncode}, see above")
    return reached


def tell(name: str, reached: Reached) -> None:
    """How far it is."""
    seconds, _, spleen = reached.dice[-1]
    print(f"  {name}: {reached.steps} steps, {seconds:.1f} s, Dice {spleen:.3f}", flush=True)


def show(name: str, reached: Reached, wanted: float) -> None:
    """One line for a training."""
    last, best = reached.dice[-1][0], max(spleen for _, _, spleen in reached.dice)
    told = []
    for what, background in MEASURES:
        seconds = reached.until(wanted, background)
        told.append(f"{what} {wanted} {f'after {seconds:.1f} s' if seconds else f'not reached by {last:.1f} s'}")
    print(
        f"{name:10} {', '.join(told)}: {reached.steps} steps in {reached.training_seconds:.1f} s, {len(reached.dice)} "
        f"validations, best Dice of the spleen {best:.3f}; caching apart: {reached.caching_seconds:.1f} s",
        flush=True,
    )


def main(options: argparse.Namespace) -> None:
    """Draw the cases, then train in both ways."""
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("benchmarks.single_site: torch finds no CUDA GPU on this machine - run it where there is one, or "
                 "try it in small with --device cpu --cases 6 3 --size 128 128 32 --dice 0.5")  # fmt: skip
    found: dict[str, Reached] = {}
    with tempfile.TemporaryDirectory() as place:
        site = Path(place) / "site"
        started = time.perf_counter()
        cases = write_site(site, sum(options.cases), tuple(options.size))
        print(f"{len(cases)} cases drawn in {time.perf_counter() - started:.0f} s", flush=True)
        for name in options.only:
            found[name] = ours(options, site, cases) if name == "fedspleen" else peer(options, cases)
            show(name, found[name], options.dice)
    for what, background in MEASURES:
        base = found["fedspleen"].until(options.dice, background) if len(found) == 2 else None
        if base:
            other = found["peer"].until(options.dice, background)
            least = "" if other else "more than "
            print(f"{what}: the peer takes {least}{(other or found['peer'].dice[-1][0]) / base:.1f} times as long")
    if options.json:
        runs = {name: asdict(reached) for name, reached in found.items()}
        facts = {"dice": options.dice, "cases": options.cases, "size": options.size, "runs": runs, "machine": machine()}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dice", type=float, default=0.95)
    parser.add_argument("--limit", type=float, default=180, help="seconds of each training")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cases", nargs=2, type=int, default=[32, 9], help="for training and validation")
    parser.add_argument("--size", nargs=3, type=int, default=[512, 512, 90], help="voxels of a CT")
    parser.add_argument("--patch", type=int, default=96, help="sides of a patch")
    parser.add_argument("--steps", type=int, default=100, help="between two validations")
    parser.add_argument("--rounds", type=int, default=18, help="validations at most, over which the rate falls")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate")
    parser.add_argument("--batch", type=int, default=8, help="patches in a step")
    parser.add_argument("--only", nargs="+", default=["fedspleen", "peer"], choices=["fedspleen", "peer"])
    parser.add_argument("--json", type=Path)
    main(parser.parse_args())
