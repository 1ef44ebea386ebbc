"""`fedspleen export`: a model for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    model: Annotated[Path, typer.Argument(help="A model file, such as model/best.safetensors.", show_default=False)],
    format: Annotated[Literal["monai-bundle", "torchscript", "onnx"], typer.Option(help="In which form.")],
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    result: Annotated[
        Path | None, typer.Option(help="The run's result.json: its counts and scores go into the card.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a model as a MONAI bundle, TorchScript or ONNX, with a model card."""
    from fl_app.export.formats import export_model

    written = export_model(model, format, out, result, overwrite)
    difference = f"logits differ by at most {written.difference:.1g} from the model's"
    print(f"{written.folder}: {format} and MODEL_CARD.md; {difference}")
