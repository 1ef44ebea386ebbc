"""The bare network as TorchScript or ONNX: prepared patches in, logits out, float32."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_app.errors import TrainingError, UsageError
from fl_app.model_file import ModelInfo
from fl_app.prediction.predictor import Predictor

_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_MOST_DIFFERENT = 1e-3  # between runtimes, of the largest logit, or of 1 where all are smaller


@dataclass(frozen=True)
class Network:
    """A model's network on the CPU, ready to be written in another form.

    Attributes:
        module: in evaluation mode, float32.
        weights: by name.
        info: what the model file says.
        patch: (1, 1, x, y, z), an example of its input.
    """

    module: nn.Module
    weights: dict[str, torch.Tensor]
    info: ModelInfo
    patch: torch.Tensor


def load_network(model: Path) -> Network:
    """The network of a model file. Raises DataError."""
    predictor = Predictor(model, torch.device("cpu"))
    module = predictor.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    patch = torch.rand(1, 1, *predictor.job.data.patch_voxels, generator=torch.Generator().manual_seed(0))
    return Network(module, module.state_dict(), predictor.info, patch)


def description(info: ModelInfo) -> dict[str, Any]:
    """What a program needs to use the network: preprocessing, windows, classes."""
    data = info.job.data
    return {
        "input": "CT in RAS orientation, resampled to spacing_mm, window_hu mapped to 0..1 and clipped",
        "output": "logits, one channel a class",
        "spacing_mm": list(data.spacing_mm),
        "window_hu": list(data.window_hu),
        "patch_voxels": list(data.patch_voxels),
        "window_overlap": info.job.evaluation.overlap,
        "classes": ["background", *data.labels],
        "label_values": dict(data.labels),
        "round": info.round,
        "versions": dict(info.versions),
    }


def write_torchscript(network: Network, path: Path) -> float:
    """Write the traced network, with `description` as the extra file ``fedspleen.json``.

    Returns:
        the largest difference of a logit between the file, loaded anew, and the network.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes, which are fixed here
        traced = torch.jit.trace(network.module, network.patch, check_trace=False)
        torch.jit.save(traced, path, {"fedspleen.json": json.dumps(description(network.info))})
        loaded = torch.jit.load(path, map_location="cpu")
    return _difference(network, path, loaded)


def write_onnx(network: Network, path: Path) -> float:
    """Write the network as ONNX: input ``image`` (batch, 1, x, y, z), output ``logits``; only the batch may vary.

    Returns:
        the largest difference of a logit between onnxruntime and the network.

    Raises:
        UsageError: a package that this needs is not installed.
        TrainingError: torch cannot write this network, or it computes something else.
    """
    missing = [package for package in _EXTRA if find_spec(package) is None]
    if missing:
        raise UsageError(f"--format onnx: not installed: {', '.join(missing)}; pip install 'fedspleen[export]'")
    import onnx
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    said = io.StringIO()  # the exporter prints what only its authors can use
    with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network.module,
                (torch.cat([network.patch] * 2),),
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise TrainingError(
                f"torch {torch.__version__} cannot write this network ({network.info.network}) as ONNX; "
                "--format torchscript and --format monai-bundle can"
            ) from error
    assert program is not None  # as it is written by us, not by the exporter
    program.model.metadata_props["fedspleen"] = json.dumps(description(network.info))
    program.save(str(path))
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _difference(
        network, path, lambda patches: torch.from_numpy(session.run(["logits"], {"image": patches.numpy()})[0])
    )


@torch.no_grad()
def _difference(network: Network, path: Path, runtime: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The largest difference of a logit, for one patch and for two at once, as a share of the largest logit above 1.

    Raises:
        TrainingError: it is too large, so the file must not be used; it is removed.
    """
    worst = 0.0
    for patches in (network.patch, torch.cat([network.patch, 1 - network.patch])):
        logits = network.module(patches)
        difference = (runtime(patches) - logits).abs().max() / logits.abs().max().clamp(min=1)
        worst = max(worst, float(difference))
    if not worst < _MOST_DIFFERENT:
        path.unlink()
        raise TrainingError(f"{path.name}: its logits differ by {worst:.2g} of the largest; it was not kept")
    return worst
