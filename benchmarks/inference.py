"""Segmenting one whole CT: our windows against MONAI's `sliding_window_inference`, with the same network and weights.

A phantom CT of about 490 x 420 x 180 voxels is prepared once, as training does (1.5 x 1.5 x 2 mm, cut to the body). The
default U-Net first learns the spleen from twelve other phantom patients, for some minutes. MONAI computes in fp32
with windows of 96^3, overlap 0.5 and Gaussian weights, on the network as MONAI builds it; ours is what
`fedspleen predict` does between preparing and bringing back, at the same overlap, at the default one, and in fp32. One
thread, processor time, all of a repetition one after the other.

    .venv/bin/python -m benchmarks.inference [REPETITIONS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import torch
from monai.inferers.utils import sliding_window_inference

from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.phantom import SITE_CHARACTERS, make_case
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.networks.registry import build_network
from fl_app.training.evaluation import predict
from fl_app.training.metrics import dice
from fl_app.training.precision import MixedPrecision, choose_precision
from fl_app.training.trainer import Trainer, ready_network

PATIENTS, STEPS, COARSE, DETAIL = 12, 1200, 2.0, 4.0
CPU = torch.device("cpu")


def job(overlap: float) -> Job:
    """The default network on the default grid; it learns from small patches, to be ready soon."""
    return Job.model_validate(
        {
            "data": {"patch_voxels": [64, 64, 64]},
            "training": {"learning_rate": 0.01, "steps_per_round": STEPS, "batch_size": 2},
            "evaluation": {"overlap": overlap},
        }
    )


def prepared(folder: Path, patient: int, detail: float) -> PreparedCase:
    """One phantom patient, as training sees it."""
    image, label, affine = make_case(SITE_CHARACTERS[0], (7, patient), detail)
    case = Case(f"{patient}", folder / f"{patient}.nii", folder / f"{patient}_label.nii")
    for path, values in ((case.image, image), (case.label, label)):
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    if detail == DETAIL:
        print(f"the CT: {' x '.join(map(str, image.shape))} voxels", flush=True)
    return prepare_cases([case], job(0.5).data, None)[0]


def main() -> None:
    """Train, segment, print a table."""
    parser = argparse.ArgumentParser(description="Sliding-window inference against MONAI's.")
    parser.add_argument("repetitions", type=int, nargs="?", default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = [prepared(Path(folder), patient, COARSE) for patient in range(PATIENTS)]
        case = prepared(Path(folder), PATIENTS, DETAIL)
    trainer = Trainer(job(0.5), training, CPU, "benchmark")
    steps = trainer.train(1, STEPS, 1)
    torch.set_num_threads(1)
    same, usual = whole(0.5), whole(Job().evaluation.overlap)
    network = ready_network(same, CPU).eval()
    network.load_state_dict(trainer.network.state_dict())
    monai_network = build_network(same).eval()
    monai_network.load_state_dict(network.state_dict())
    fast = MixedPrecision(choose_precision("auto", CPU), CPU)
    grid = " x ".join(map(str, case.image.shape[1:]))
    print(f"prepared: {grid}; {steps.steps} steps of training, {steps.seconds:.0f} s", flush=True)

    def monai() -> torch.Tensor:
        with torch.no_grad():
            logits = sliding_window_inference(
                case.image[None].float(), same.data.patch_voxels, 1, monai_network, overlap=0.5, mode="gaussian"
            )
        return logits[0].softmax(0)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "MONAI, fp32, overlap 0.5": monai,
        "ours, fp32, overlap 0.5": lambda: predict(network, case.image, same, MixedPrecision("fp32", CPU)),
        f"ours, {fast.name}, overlap 0.5": lambda: predict(network, case.image, same, fast),
        f"ours, {fast.name}, overlap {usual.evaluation.overlap} (default)": lambda: predict(
            network, case.image, usual, fast
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, torch.Tensor] = {}
    for _ in range(arguments.repetitions):
        for name, way in ways.items():
            started = time.process_time()
            labels[name] = way().argmax(0)
            seconds[name].append(time.process_time() - started)
    truth, reference = case.label[0], labels[next(iter(ways))]
    slow = statistics.median(seconds[next(iter(ways))])
    print(f"{'':<38}{'seconds':>9}{'(from, to)':>16}{'sooner':>8}{'Dice':>8}{'agreement':>11}")
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        score = dice(labels[name], truth, ("spleen",))["spleen"]
        agreement = dice(labels[name], reference, ("spleen",))["spleen"]
        rows.append({"name": name, "seconds": times, "ratio": slow / median, "dice": score, "agreement": agreement})
        spread = f"{min(times):.1f}, {max(times):.1f}"
        print(f"{name:<38}{median:>9.2f}{spread:>16}{slow / median:>8.1f}{score:>8.4f}{agreement:>11.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def whole(overlap: float) -> Job:
    """For inference: windows of 96^3."""
    return Job.model_validate({"evaluation": {"overlap": overlap}})


if __name__ == "__main__":
    main()
