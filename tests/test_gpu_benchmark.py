"""The benchmarks for GPU machines say what they need, and what they do can be done."""

import argparse
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch

from benchmarks import gpu, single_site
from benchmarks.gpu import FP32, Variant, inference_row, peak_flops, training_row
from benchmarks.single_site import ROOT, Reached, write_case
from fl_app.training.trial import Way

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [gpu, single_site], ids=lambda module: module.__name__)
def test_without_a_gpu_it_ends_with_one_sentence(benchmark):
    with pytest.raises(SystemExit, match=f"^{benchmark.__name__}: torch finds no CUDA GPU on this machine") as ended:
        benchmark.main(argparse.Namespace(device="cuda"))
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("variant", [FP32, Variant(Way("fp32", True))], ids=str)
def test_rows_can_be_computed(variant):
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    row = training_row("unet", 32, 1, variant, CPU)
    assert row["seconds"] > 0 and row["flops_per_second"] > 1e6
    if variant.plain:  # both predict in the same windows; one is enough here
        assert inference_row(32, variant, CPU)["seconds"] > 0
    assert peak_flops(FP32, CPU) > 1e9
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_an_enlarged_phantom_lies_where_the_phantom_lay(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    case = write_case(tmp_path, 0, (160, 140, 45))
    image, label = nibabel.load(case.image), nibabel.load(case.label)
    assert image.shape == label.shape == (160, 140, 45) and np.asarray(label.dataobj).max() == 1
    whole = np.abs(image.affine[:3, :3] @ (np.array(image.shape) - 1))
    assert (whole[:2] > 250).all() and (whole[:2] < 480).all() and 120 < whole[2] < 280, "mm of a body"
    inside = np.asarray(image.dataobj)[np.asarray(label.dataobj) == 1]
    assert 60 < inside.mean() < 200, "HU of a spleen in the portal venous phase"


@pytest.mark.slow
def test_monais_fast_training_runs_as_a_peer(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cases = [write_case(tmp_path, number, (64, 56, 16)) for number in range(2)]
    files = [{"image": str(case.image), "label": str(case.label)} for case in cases]
    plan = {"training": files, "validation": files[:1], "patch": [32] * 3, "window": [48] * 3}
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"device": "cpu", "dice": 0.0, "limit": 5}))
    script = ROOT / "benchmarks" / "peers" / "monai_fast_training.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "plan.json")]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert told["steps"] == 1 and told["training_seconds"] > 0 and told["caching_seconds"] > 0
    [(seconds, background, spleen)] = told["dice"]
    assert seconds > told["training_seconds"] and 0 <= background <= 1 and 0 <= spleen <= 1


def test_the_time_to_a_dice_is_that_of_the_first_validation_that_reached_it():
    reached = Reached(dice=[(1.0, 0.9, 0.5), (2.0, 1.0, 0.8), (3.0, 1.0, 0.95), (4.0, 1.0, 0.9)])
    assert (reached.until(0.9), reached.until(0.9, background=True), reached.until(0.99)) == (3.0, 2.0, None)
