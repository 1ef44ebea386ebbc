"""Write a model in another form, with its card beside it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fl_app.errors import UsageError
from fl_app.export.bundle import write_bundle
from fl_app.export.card import metrics, write_card
from fl_app.export.network import load_network, write_onnx, write_torchscript
from fl_app.result import read_result

Format = Literal["monai-bundle", "torchscript", "onnx"]
FORMATS: tuple[Format, ...] = ("monai-bundle", "torchscript", "onnx")
_FILES = {
    "torchscript": {"model.ts": "the network; `torch.jit.load` needs neither fedspleen nor MONAI"},
    "onnx": {"model.onnx": "the network: input `image`, output `logits`, any number of patches"},
    "monai-bundle": {
        "configs/metadata.json": "the bundle's description",
        "configs/inference.json": "for `python -m monai.bundle run`, in this folder: `./scans` to `./predictions`",
        "models/model.pt": "weights",
        "models/model.ts": "the network as TorchScript",
    },
}


@dataclass(frozen=True)
class Export:
    """What was written: the folder, and the largest difference of a logit from the model's."""

    folder: Path
    difference: float


def export_model(model: Path, format: Format, out: Path, result: Path | None, overwrite: bool) -> Export:
    """Write a model in another form into a folder that appears when it is complete.

    Args:
        model: a model file.
        format: one of `FORMATS`.
        out: the folder.
        result: the run's result.json, for the card.
        overwrite: replace the folder if it is an earlier export.

    Raises:
        UsageError: the folder exists, or a package is missing.
        DataError: model or result cannot be read.
        TrainingError: the file that was written computes something else.
    """
    if out.exists() and not (overwrite and (out / "MODEL_CARD.md").exists()):
        raise UsageError(f"{out} exists; choose another --out, or replace an earlier export with --overwrite")
    network = load_network(model)
    run = read_result(result) if result else None
    card = write_card(network.info, run, _FILES[format])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        if format == "torchscript":
            worst = write_torchscript(network, folder / "model.ts")
        elif format == "onnx":
            worst = write_onnx(network, folder / "model.onnx")
        else:
            worst = write_bundle(network, folder, metrics(network.info, run))
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.replace(out)
    return Export(out, worst)
