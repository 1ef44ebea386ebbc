"""A model as a MONAI bundle, for MONAI Label, MONAI Deploy and `python -m monai.bundle`.

https://docs.monai.io/en/stable/mb_specification.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fl_app.data.preparation import BODY_HU, BODY_MARGIN
from fl_app.export.network import Network, write_torchscript
from fl_app.model_file import ModelInfo

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(network: Network, folder: Path, metrics: Mapping[str, float]) -> float:
    """Write configs and models of a bundle into an existing folder.

    The network is TorchScript, so that a bundle of any network loads without fedspleen.

    Args:
        network: the model's.
        folder: the bundle's root.
        metrics: by name, for its metadata.

    Returns:
        the largest difference of a logit between its network and the model's.
    """
    for name in ("configs", "models"):
        (folder / name).mkdir()
    torch.save(network.weights, folder / "models" / "model.pt")
    worst = write_torchscript(network, folder / "models" / "model.ts")
    for name, content in (("metadata", _metadata(network.info, metrics)), ("inference", _inference(network.info))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n")
    return worst


def _metadata(info: ModelInfo, metrics: Mapping[str, float]) -> dict[str, Any]:
    data = info.job.data
    organs = list(data.labels)
    classes = {str(number): name for number, name in enumerate(["background", *organs])}
    both = {"num_channels": 1, "spatial_shape": list(data.patch_voxels), "dtype": "float32", "is_patch_data": True}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported after round {info.round}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"nibabel": metadata.version("nibabel")},
        "optional_packages_version": {"pytorch-ignite": "0.5.0"},
        "supported_apps": {},
        "name": info.job.name,
        "task": f"Segmentation of {', '.join(organs)} in CT",
        "description": "A 3D segmentation network, trained by federated learning with fedspleen",
        "authors": "the consortium that trained it",
        "copyright": "the consortium that trained it",
        "data_source": "CT of the consortium's sites; it never left them",
        "data_type": "nibabel",
        "image_classes": "single channel CT, Hounsfield units mapped to [0, 1]",
        "label_classes": ", ".join(f"{value} is {organ}" for organ, value in data.labels.items()) + ", 0 is all else",
        "pred_classes": f"{len(classes)} channels: "
        + ", ".join(f"{number} {name}" for number, name in classes.items()),
        "eval_metrics": dict(metrics),
        "intended_use": "Research. Not a medical device, not for diagnosis or treatment.",
        "references": [],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    **both,
                    "value_range": [0, 1],
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    **both,
                    "num_channels": len(classes),
                    "value_range": [],
                    "channel_def": classes,
                }
            },
        },
    }


def _inference(info: ModelInfo) -> dict[str, Any]:
    """Training's preparation, `predict`'s windows, and the way back to the scan's own grid."""
    data, keys = info.job.data, {"keys": "image"}
    lower, upper = data.window_hu
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "./scans",
        "output_dir": "$@bundle_root + '/predictions'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": "$@bundle_root + '/models/model.ts'",
            "map_location": "@device",
        },
        "network": "$@network_def.eval()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", **keys, "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", **keys},
                {"_target_": "Orientationd", **keys, "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", **keys, "pixdim": list(data.spacing_mm), "mode": "bilinear"},
                {
                    "_target_": "CropForegroundd",
                    **keys,
                    "source_key": "image",
                    "select_fn": f"$lambda image: image > {BODY_HU}",
                    "margin": BODY_MARGIN,
                    "allow_smaller": True,
                },
                {
                    "_target_": "ScaleIntensityRanged",
                    **keys,
                    "a_min": lower,
                    "a_max": upper,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
                # as training stores its cases
                {"_target_": "CastToTyped", **keys, "dtype": "$torch.float16"},
                {"_target_": "CastToTyped", **keys, "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(info.job.window),
            "sw_batch_size": 1,
            "overlap": info.job.evaluation.overlap,
            "mode": "gaussian",
        },
        "probabilities": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                "@probabilities",
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "MapLabelValued",
                    "keys": "pred",
                    "orig_labels": list(range(len(data.labels) + 1)),
                    "target_labels": [0, *data.labels.values()],
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "label",
                    "output_dtype": "$numpy.uint16",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        # pytorch-ignite, which the evaluator needs, is not required to run this
        "predict_one": "$lambda item: {**item, 'pred': @inferer(item['image'][None].to(@device), @network)[0].cpu()}",
        "initialize": ["$torch.set_grad_enabled(False)"],
        "run": ["$[None for _ in map(@postprocessing, map(@predict_one, @dataset))]"],
    }
