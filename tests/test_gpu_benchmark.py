"""The benchmark for GPU machines says what it needs, and its rows can be computed."""

import argparse

import pytest
import torch

from benchmarks.gpu import BASE, Variant, main, peak_flops, training_row
from fl_app.training.trial import Way

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence():
    with pytest.raises(SystemExit, match=r"^benchmarks\.gpu: torch finds no CUDA GPU on this machine") as ended:
        main(argparse.Namespace(device="cuda"))
    assert "\n" not in str(ended.value)


def test_rows_can_be_computed():
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    row = training_row("unet", 32, 1, Variant(Way("fp32", True)), CPU)
    assert row["seconds"] > 0 and row["flops_per_second"] > 1e6
    assert peak_flops(BASE, CPU) > 1e9
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
