"""From inputs to files: what is written where, one scan after another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch

from fl_app.data.dicom.segmentation import write_segmentation
from fl_app.data.dicom.series import CtSeries
from fl_app.errors import DataError, UsageError
from fl_app.prediction.inputs import PROBABILITY, Input
from fl_app.prediction.outputs import update_table, write_labels
from fl_app.prediction.predictor import Prediction, Predictor
from fl_app.prediction.scan import Scan
from fl_app.prediction.scores import OrganScore, score
from fl_app.prediction.stages import Advance
from fl_app.prediction.zarr_files import write_zarr
from fl_app.versions import own_version

VOLUMES, SCORES = "volumes.csv", "scores.csv"


@dataclass(frozen=True)
class Outputs:
    """The files about one scan."""

    labels: Path
    probabilities: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one scan.

    Attributes:
        name: the scan's.
        labels: the file written: NIfTI, zarr or DICOM SEG.
        volumes_ml: by organ.
        scores: by organ; empty without true labels.
        warnings: what makes it doubtful.
        seconds: wall time.
    """

    name: str
    labels: Path
    volumes_ml: dict[str, float]
    scores: dict[str, OrganScore]
    warnings: tuple[str, ...]
    seconds: float


def plan_outputs(
    inputs: Sequence[Input], organs: Sequence[str], out: Path, probabilities: bool, overwrite: bool
) -> dict[str, Outputs]:
    """The files to write for each input, by its name.

    Raises:
        UsageError: one of them exists already, or is an input itself.
    """
    planned = {}
    for each in inputs:
        kind = "_seg.dcm" if each.is_dicom else "_label.zarr" if each.is_zarr else "_label.nii.gz"
        labels = out / f"{each.name}{kind}"
        per_organ = [out / f"{each.name}_{organ.replace(' ', '_')}{PROBABILITY}.nii.gz" for organ in organs]
        planned[each.name] = Outputs(labels, tuple(per_organ if probabilities else ()))
    paths = [path for outputs in planned.values() for path in (outputs.labels, *outputs.probabilities)]
    sources = {each.path.resolve() for each in inputs}
    for path in paths:
        if path.resolve() in sources:
            raise UsageError(f"{path} is an input and would be overwritten; choose another --out")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists; choose another --out, or replace it with --overwrite")
    return planned


def predict_input(
    predictor: Predictor, source: Input, outputs: Outputs, truth: Path | None, advance: Advance
) -> Outcome:
    """Predict one scan and write all files about it.

    Raises:
        DataError: it cannot be read, predicted, scored or written.
    """
    started = time.monotonic()
    out = outputs.labels.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        # beside the result: the system's temporary folder may lie in memory
        with tempfile.TemporaryDirectory(prefix=".fedspleen-", dir=out) as folder:
            scan = source.open(Path(folder))
            prediction = predictor.predict(scan, Path(folder), outputs.probabilities, advance)
            scores = score(prediction.labels, scan, truth, predictor.job) if truth else {}
            _write(outputs.labels, scan, prediction, predictor)
    except OSError as error:
        raise DataError(f"{source.name}: {error.strerror or error}: {error.filename or out}") from None
    except torch.OutOfMemoryError:
        raise DataError(f"{source.name}: the GPU's memory is too small for it; use --device cpu") from None
    _add_to_tables(out, source.name, prediction, scores)
    return Outcome(
        source.name, outputs.labels, prediction.volumes_ml, scores, prediction.warnings, time.monotonic() - started
    )


def _write(path: Path, scan: Scan, prediction: Prediction, predictor: Predictor) -> None:
    if path.suffix != ".dcm":
        write = write_zarr if path.suffix == ".zarr" else write_labels
        write(path, scan, prediction.labels, tuple(predictor.job.data.labels.values()))
        return
    labels = prediction.labels.read(0, prediction.labels.shape[0])
    write_segmentation(path, cast(CtSeries, scan), labels, predictor.organs, own_version())


def _add_to_tables(out: Path, name: str, prediction: Prediction, scores: Mapping[str, OrganScore]) -> None:
    volumes = [
        {"scan": name, "organ": organ, "voxels": voxels, "volume_ml": f"{prediction.volumes_ml[organ]:.3f}"}
        for organ, voxels in prediction.voxels.items()
    ]
    update_table(out / VOLUMES, ("scan", "organ", "voxels", "volume_ml"), volumes, "scan")
    if scores:
        rows = [
            {"scan": name, "organ": organ} | {key: f"{value:.6f}" for key, value in asdict(values).items()}
            for organ, values in scores.items()
        ]
        update_table(out / SCORES, tuple(rows[0]), rows, "scan")
