"""Predicting volumes of growing length: `fedspleen predict` against MONAI with the whole volume in memory.

Phantom patients lie one behind the other until the volume is long enough, on the grid that the model asks for. Both
sides read the same NIfTI file and compute in fp32, with the same network, windows, overlap and Gaussian weights; MONAI
as its spleen tutorial does (load, orient, resample, scale, `sliding_window_inference`), and is spared the way back
to the scan's grid. Each prediction is a process of its own; its memory is the resident peak above what it had with
everything imported. Then the longest volume once more, with a limit set by the system (RLIMIT_DATA) on what a process
may take above that; and for the shortest one the largest difference between the probabilities of the command, which
works slab by slab, and of the same windows in memory as training scores them, and MONAI's.

    .venv/bin/python -m benchmarks.large_volume [LENGTHS ...] [--limit-mb N] [--json FILE]
    .venv/bin/python -m benchmarks.large_volume --shape 2304 1280 1024    # ours alone, as zarr: needs 45 GB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from benchmarks.peers.monai_whole_volume import predict_whole
from fl_app.cli.__main__ import app
from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.phantom import SITE_CHARACTERS, make_case
from fl_app.data.preparation import prepare_cases
from fl_app.model_file import ModelInfo, save_model
from fl_app.prediction.predictor import Predictor
from fl_app.result import software_versions
from fl_app.training.evaluation import predict
from fl_app.training.trainer import ready_network

LENGTHS, LIMIT_MB, DETAIL = (1, 4, 16), 500, 2.0
CHUNK = 128  # voxels, each way
SPACING_MM = (2.5, 2.5, 4.0)
PATCH = (96, 96, 48)
PLANES = 84  # of the shortest volume: it, 4 and 16 times as many are whole steps of windows


def block() -> NDArray[np.int16]:
    """HU of a phantom patient, cut so that every side touches the body and is whole steps of windows long.

    Both programs then place the same windows; else ours would spread them evenly, and MONAI's would not lie there.
    """
    image, _, _ = make_case(SITE_CHARACTERS[0], (11, 0), DETAIL)
    body = np.argwhere(image > -500)
    sides = [slice(start, stop) for start, stop in zip(body.min(0), body.max(0) + 1, strict=True)]
    for axis in (0, 1):
        start, window = sides[axis].start, PATCH[axis]
        step = int(window * (1 - Job().evaluation.overlap))
        sides[axis] = slice(start, start + window + (sides[axis].stop - start - window) // step * step)
    return np.asarray(image[tuple(sides)])


def mirrored(size: int, start: int, stop: int) -> NDArray[np.intp]:
    """Places in a block of this size that repeats as its own mirror image, from ``start`` on."""
    places = np.arange(start, stop) % (2 * size)
    return np.where(places < size, places, 2 * size - 1 - places)


def write_model(path: Path, precision: str) -> None:
    """The quick job's network as it is before training: what it answers does not matter here."""
    job = Job.model_validate(
        {
            "data": {"spacing_mm": SPACING_MM, "patch_voxels": PATCH},
            "network": {"channels": [16, 32, 64, 128]},
            "training": {"precision": precision},
        }
    )
    network = ready_network(job, torch.device("cpu"))
    save_model(path, network.state_dict(), ModelInfo(job, 1, None, software_versions(), ()))


def own_status(name: str) -> int:
    """Bytes, as Linux tells them of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def side(name: str, model: Path, scan: Path, out: Path, limit_mb: int, probabilities: bool) -> None:
    """One prediction in this process; prints what it took as JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    import_module("fl_app.prediction.session")  # as the command will: it is no part of a prediction's memory
    if limit_mb:
        limit = own_status("VmData") + limit_mb * 10**6
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before, started = own_status("VmRSS"), time.perf_counter()
    if name == "MONAI":
        predict_whole(model, scan, out)
    else:
        extra = ["--probabilities"] if probabilities else []
        app(["predict", str(model), str(scan), "--out", str(out), "--device", "cpu", *extra], standalone_mode=False)
    peak = own_status("VmHWM")  # getrusage's counts what the parent had when it started this process
    print(json.dumps({"mb": (peak - before) / 1e6, "all_mb": peak / 1e6, "seconds": time.perf_counter() - started}))


def in_memory(model: Path, scan: Path) -> NDArray[np.float32]:
    """The spleen's probabilities as training finds them: the whole prepared volume in memory."""
    predictor = Predictor(model, torch.device("cpu"))
    image = nibabel.load(scan)
    label = scan.with_name(f"label-{scan.name}")
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), label)
    [case] = prepare_cases([Case("scan", scan, label)], predictor.job.data, None)
    return np.asarray(predict(predictor.network, case.image, predictor.job, predictor.precision)[1])


def run(name: str, model: Path, scan: Path, out: Path, *more: str) -> dict[str, float] | str:
    """What a prediction in a process of its own took, or how it ended."""
    command = [sys.executable, "-m", "benchmarks.large_volume", "--side", name, str(model), str(scan), str(out), *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return next((line for line in lines if "allocate" in line), lines[-1]).strip(" │")[:100]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def grow(lengths: Sequence[int], limit_mb: int, report: Path | None) -> None:
    """Both sides by length, then the hard limit and the difference."""
    patient, rows = block(), {}
    affine = np.diag([*SPACING_MM, 1.0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        write_model(model, "fp32")
        first: dict[str, float] = {}
        for length in lengths:
            volume = patient[:, :, mirrored(patient.shape[2], 0, length * PLANES)]
            scan = folder / f"{length}.nii"
            nibabel.save(nibabel.Nifti1Image(volume, affine), scan)
            print(f"{' x '.join(map(str, volume.shape))} voxels", flush=True)
            for program in ("ours", "MONAI"):
                more = ["--probabilities"] if length == lengths[0] else []
                found = run(program, model, scan, folder / f"{program}-{length}", *more)
                if isinstance(found, str):
                    raise SystemExit(f"{program}: {found}")
                rows[f"{program} {length}"] = found
                base = first.setdefault(program, found["mb"])
                print(
                    f"  {program:<6}{found['mb']:7.0f} MB ({found['mb'] / base:.2f} times the shortest's; in all "
                    f"{found['all_mb']:.0f} MB){found['seconds']:8.1f} s",
                    flush=True,
                )
        limited = {}
        for program in ("ours", "MONAI"):
            ended = run(program, model, scan, folder / f"limited-{program}", "--limit-mb", str(limit_mb))
            limited[program] = f"fails: {ended}" if isinstance(ended, str) else "finishes"
            print(f"the last one, with {limit_mb} MB at most: {program} {limited[program]}", flush=True)
        ours = nibabel.load(folder / f"ours-{lengths[0]}" / f"{lengths[0]}_spleen_probability.nii.gz").get_fdata()
        others = {
            "in memory": in_memory(model, folder / f"{lengths[0]}.nii"),
            "MONAI": np.load(folder / f"MONAI-{lengths[0]}" / "probabilities.npy")[1],
        }
        differences = {name: float(np.abs(ours - other).max()) for name, other in others.items()}
        for name, difference in differences.items():
            print(f"largest difference of the probabilities, {name}: {difference:.1e}")
    if report:
        report.write_text(json.dumps({"rows": rows, "limited": limited, "differences": differences}, indent=1) + "\n")


def huge(shape: Sequence[int], folder: Path) -> None:
    """One volume of any size, as zarr, in bf16 where that is fast."""
    patient = block()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scan, model = Path(name) / "scan.zarr", Path(name) / "model.safetensors"
        write_model(model, "auto")
        array = zarr.create(shape=shape, chunks=(CHUNK,) * 3, dtype="float32", store=str(scan))
        array.attrs["affine"] = np.diag([*SPACING_MM, 1.0]).tolist()
        for start in range(0, shape[2], CHUNK):
            stop = min(start + CHUNK, shape[2])
            ranges = ((0, shape[0]), (0, shape[1]), (start, stop))
            places = [mirrored(size, *part) for size, part in zip(patient.shape, ranges, strict=True)]
            array[:, :, start:stop] = patient[np.ix_(*places)]
        print(f"{' x '.join(map(str, shape))} voxels of float32, {4 * np.prod(shape) / 1e9:.1f} GB", flush=True)
        found = run("ours", model, scan, Path(name) / "out")
        if isinstance(found, str):
            raise SystemExit(found)
        print(f"ours: {found['all_mb']:.0f} MB in all, {found['mb']:.0f} MB of them its own, {found['seconds']:.0f} s")


def main() -> None:
    """Measure, in processes of their own, and print."""
    parser = argparse.ArgumentParser(description="Memory and time of a prediction by the volume's size.")
    parser.add_argument("lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--limit-mb", type=int, default=0)
    parser.add_argument("--shape", type=int, nargs=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for --shape")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", nargs=4, metavar=("NAME", "MODEL", "SCAN", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--probabilities", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        name, model, scan, out = arguments.side
        side(name, Path(model), Path(scan), Path(out), arguments.limit_mb, arguments.probabilities)
    elif arguments.shape:
        huge(arguments.shape, arguments.folder)
    else:
        grow(arguments.lengths, arguments.limit_mb or LIMIT_MB, arguments.json)


if __name__ == "__main__":
    main()
