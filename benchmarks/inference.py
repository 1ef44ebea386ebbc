"""Segmenting one whole CT: our windows against MONAI's `sliding_window_inference`, with the same network and weights;
then all of it, from file to file: `fedspleen predict` against MONAI's spleen tutorial; then what evenly spread windows
are worth.

A phantom CT of about 490 x 420 x 180 voxels is prepared once, as training does (1.5 x 1.5 x 2 mm, cut to the body). The
default U-Net first learns the spleen from twelve other phantom patients, for some minutes. MONAI computes in fp32
with windows of 96^3, overlap 0.5 and Gaussian weights, on the network as MONAI builds it; ours is what
`fedspleen predict` does between preparing and bringing back, at the same overlap, at the default one, and in fp32. From
file to file both read the same .nii.gz and write a label map on its grid, MONAI with `Invertd`. One thread, processor
time, all of a repetition one after the other. Last, mean Dice of eight coarser phantoms in MONAI's windows and in ours,
which are as many.

    .venv/bin/python -m benchmarks.inference [REPETITIONS] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference

from benchmarks.peers.monai_whole_volume import segment_to_file
from benchmarks.timing import in_turns
from fl_app.cli.__main__ import app
from fl_app.config import Job
from fl_app.data.cases import Case
from fl_app.data.phantom import SITE_CHARACTERS, make_case
from fl_app.data.preparation import PreparedCase, prepare_cases
from fl_app.model_file import ModelInfo, save_model
from fl_app.networks.registry import build_network
from fl_app.result import software_versions
from fl_app.training.evaluation import predict
from fl_app.training.metrics import dice
from fl_app.training.precision import MixedPrecision, choose_precision
from fl_app.training.trainer import Trainer, ready_network

PATIENTS, STEPS, COARSE, DETAIL, OTHERS = 12, 1200, 2.0, 4.0, 8
CPU = torch.device("cpu")
Ways = dict[str, Callable[[], torch.Tensor]]


def job(overlap: float) -> Job:
    """The default network on the default grid; it learns from small patches, to be ready soon."""
    return Job.model_validate(
        {
            "data": {"patch_voxels": [64, 64, 64]},
            "training": {"learning_rate": 0.01, "steps_per_round": STEPS, "batch_size": 2},
            "evaluation": {"overlap": overlap},
        }
    )


def stored(folder: Path, patient: int, detail: float) -> Case:
    """One phantom patient as files."""
    image, label, affine = make_case(SITE_CHARACTERS[0], (7, patient), detail)
    case = Case(f"{patient}", folder / f"{patient}.nii.gz", folder / f"{patient}_label.nii.gz")
    for path, values in ((case.image, image), (case.label, label)):
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return case


def train(cases: Sequence[PreparedCase]) -> dict[str, torch.Tensor]:
    """Weights that know the organ."""
    trainer = Trainer(job(0.5), cases, CPU, "benchmark")
    steps = trainer.train(1, STEPS, 1)
    print(f"{steps.steps} steps of training, {steps.seconds:.0f} s", flush=True)
    return trainer.network.state_dict()


def main() -> None:
    """Train, segment, print the tables."""
    parser = argparse.ArgumentParser(description="Sliding-window inference against MONAI's.")
    parser.add_argument("repetitions", type=int, nargs="?", default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), job(0.5).data
        weights = train(prepare_cases([stored(folder, each, COARSE) for each in range(PATIENTS)], data, None))
        torch.set_num_threads(1)
        scan = stored(folder, PATIENTS, DETAIL)
        assert scan.label is not None
        [case] = prepare_cases([scan], data, None)
        print(f"the CT: {' x '.join(map(str, nibabel.load(scan.image).shape))} voxels")
        print(f"prepared: {' x '.join(map(str, case.image.shape[1:]))}", flush=True)
        truth = torch.from_numpy(np.asarray(nibabel.load(scan.label).dataobj))
        rows = compare("the windows alone", in_memory(weights, case), case.label[0], arguments.repetitions)
        rows += compare("from file to file", by_files(weights, scan.image, folder), truth, arguments.repetitions)
        others = [stored(folder, 100 + each, COARSE) for each in range(OTHERS)]
        rows += spread(weights, prepare_cases(others, data, None))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def by_monai(network: torch.nn.Module, case: PreparedCase, overlap: float) -> torch.Tensor:
    """Probabilities in MONAI's windows, fp32."""
    with torch.no_grad():
        patch = whole(overlap).data.patch_voxels
        logits = sliding_window_inference(case.image[None].float(), patch, 1, network, overlap, mode="gaussian")
    return logits[0].softmax(0)


def networks(weights: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and MONAI's, with the same weights."""
    both = ready_network(whole(0.5), CPU).eval(), build_network(whole(0.5)).eval()
    for network in both:
        network.load_state_dict(weights)
    return both


def in_memory(weights: dict[str, torch.Tensor], case: PreparedCase) -> Ways:
    """Of a prepared case the label map on its own grid."""
    network, monai_network = networks(weights)
    fast, fp32 = MixedPrecision(choose_precision("auto", CPU), CPU), MixedPrecision("fp32", CPU)
    usual = Job().evaluation.overlap
    return {
        "MONAI, fp32, overlap 0.5": lambda: by_monai(monai_network, case, 0.5).argmax(0),
        "ours, fp32, overlap 0.5": lambda: predict(network, case.image, whole(0.5), fp32).argmax(0),
        f"ours, {fast.name}, overlap 0.5": lambda: predict(network, case.image, whole(0.5), fast).argmax(0),
        f"ours, {fast.name}, overlap {usual} (default)": lambda: predict(
            network, case.image, whole(usual), fast
        ).argmax(0),
    }


def spread(weights: dict[str, torch.Tensor], cases: Sequence[PreparedCase]) -> list[dict[str, object]]:
    """Print the mean Dice in MONAI's windows and in ours, both fp32; return the same."""
    network, monai_network = networks(weights)
    fp32 = MixedPrecision("fp32", CPU)

    def ours(case: PreparedCase, overlap: float) -> torch.Tensor:
        return predict(network, case.image, whole(overlap), fp32)

    rows: list[dict[str, object]] = []
    for overlap in (Job().evaluation.overlap, 0.5):
        for name, way in (("MONAI's windows", partial(by_monai, monai_network)), ("evenly spread", ours)):
            found = [way(case, overlap=overlap).argmax(0) for case in cases]
            scores = [
                dice(labels, case.label[0], ("spleen",))["spleen"] for labels, case in zip(found, cases, strict=True)
            ]
            rows.append({"name": f"{name}, overlap {overlap}", "dice": scores})
            told = ", ".join(f"{score:.3f}" for score in scores)
            print(f"{name:<16} overlap {overlap:<5} mean Dice {statistics.mean(scores):.4f} ({told})", flush=True)
    return rows


def by_files(weights: dict[str, torch.Tensor], scan: Path, folder: Path) -> Ways:
    """Of a NIfTI file the label map in another one."""
    _, monai_network = networks(weights)

    def read(label: Path) -> torch.Tensor:
        return torch.from_numpy(np.asarray(nibabel.load(label).dataobj).astype(np.uint8))

    def ours(overlap: float) -> torch.Tensor:
        model, out = folder / f"{overlap}.safetensors", folder / "out"
        save_model(model, weights, ModelInfo(whole(overlap), 1, None, software_versions(), ()))
        told = ["predict", str(model), str(scan), "--out", str(out), "--device", "cpu", "--overwrite"]
        with redirect_stdout(StringIO()):
            app(told, standalone_mode=False)
        return read(next(out.glob("*_label.nii.gz")))

    usual = Job().evaluation.overlap
    return {
        "MONAI's tutorial, fp32, overlap 0.5": lambda: read(
            segment_to_file(monai_network, whole(0.5), scan, folder / "monai")
        ),
        "fedspleen predict, overlap 0.5": lambda: ours(0.5),
        f"fedspleen predict, overlap {usual} (default)": lambda: ours(usual),
    }


def compare(title: str, ways: Ways, truth: torch.Tensor, repetitions: int) -> list[dict[str, object]]:
    """Print how long each way takes, its Dice, and its agreement with the first one; return the same."""
    labels: dict[str, torch.Tensor] = {}

    def kept(name: str, way: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: labels.update({name: way()})

    seconds = in_turns({name: kept(name, way) for name, way in ways.items()}, repetitions)
    first = next(iter(ways))
    slow = statistics.median(seconds[first])
    print(f"{title:<42}{'seconds':>9}{'(from, to)':>16}{'sooner':>8}{'Dice':>8}{'agreement':>11}")
    rows: list[dict[str, object]] = []
    for name, times in seconds.items():
        median = statistics.median(times)
        score = dice(labels[name], truth, ("spleen",))["spleen"]
        agreement = dice(labels[name], labels[first], ("spleen",))["spleen"]
        rows.append({"name": name, "seconds": times, "ratio": slow / median, "dice": score, "agreement": agreement})
        spread = f"{min(times):.1f}, {max(times):.1f}"
        print(f"{name:<42}{median:>9.2f}{spread:>16}{slow / median:>8.1f}{score:>8.4f}{agreement:>11.4f}", flush=True)
    return rows


def whole(overlap: float) -> Job:
    """For inference: windows of 96^3."""
    return Job.model_validate({"evaluation": {"overlap": overlap}})


if __name__ == "__main__":
    main()
