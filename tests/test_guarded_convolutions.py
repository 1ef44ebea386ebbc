"""Convolutions in bf16 on CPUs: oneDNN alone gives garbage for small maps, and writes too far for flat ones."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fl_app.training.adapting import adapt_layers
from fl_app.training.spilling import spills
from tests.bf16 import needs_bf16, poison

CPU = torch.device("cpu")

FLAT = {
    "smoothing": (lambda: nn.Conv3d(16, 16, 3, padding=1), (6, 96, 96)),
    "few channels": (lambda: nn.Conv3d(1, 2, 3, padding=1), (6, 112, 112)),
    "larger kernel": (lambda: nn.Conv3d(16, 16, (3, 5, 7), padding=(1, 2, 3)), (7, 96, 96)),
    "striding": (lambda: nn.Conv3d(16, 32, 3, stride=(1, 2, 2), padding=1), (6, 160, 160)),
    "transposed": (lambda: nn.ConvTranspose3d(16, 16, 3, 2, 1, output_padding=1), (4, 80, 80)),
    "transposed, plane by plane": (lambda: nn.ConvTranspose3d(32, 16, (1, 2, 2), (1, 2, 2)), (6, 80, 80)),
    "in groups": (lambda: nn.Conv3d(32, 32, 3, padding=1, groups=2), (6, 96, 96)),
}
SMALL = {
    "a single voxel is left": (lambda: nn.Conv3d(16, 16, 2, 2), (6, 6, 3)),
    "a single voxel is left by larger strides": (lambda: nn.Conv3d(16, 16, 3, 3, 1), (9, 9, 3)),
    "from a single voxel": (lambda: nn.ConvTranspose3d(16, 16, 3, 2, 1, output_padding=1), (4, 6, 1)),
    "transposed, smaller than its kernel": (lambda: nn.ConvTranspose3d(64, 1, 3, 1, 1), (1, 2, 2)),
}


def gradients(network, image, mixed):
    image = image.clone().requires_grad_()
    poison()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        output = network(image)
    poison()
    output.float().sin().sum().backward()
    found = [output.detach().float(), image.grad, *(each.grad for each in network.parameters())]
    network.zero_grad()
    return found


def check(make, sides):
    """A layer's results and gradients, many times, which have to be those in fp32 up to rounding."""
    torch.manual_seed(0)
    network = nn.Sequential(make())
    image = torch.randn(2, network[0].in_channels, *sides).contiguous(memory_format=torch.channels_last_3d)
    wanted = gradients(network, image, False)
    adapt_layers(network)
    for _ in range(3):
        for found, true in zip(gradients(network, image, True), wanted, strict=True):
            assert (found - true).norm() < 0.03 * true.norm(), sides


@needs_bf16
@pytest.mark.parametrize("name", SMALL)
def test_results_and_gradients_of_small_maps_are_right(name):
    check(*SMALL[name])


@needs_bf16
def test_gradients_of_flat_maps_are_right_and_leave_the_memory_of_others_alone():
    # in a process of its own, whose allocator looks for what was overwritten
    checked = {**os.environ, "LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    ended = subprocess.run([sys.executable, "-m", __name__], env=checked, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip() == "done"


@pytest.mark.parametrize("sides", [(48, 48, 24), (96, 96, 48), (160, 96, 96), (96, 96, 512)])
def test_maps_with_as_many_planes_as_rows_are_computed_as_they_lie(sides):
    assert not spills(sides, (512, 512), torch.bfloat16, CPU)


def test_only_large_planes_in_bf16_on_a_cpu_are_turned():
    assert spills((6, 96, 96), (16, 16), torch.bfloat16, CPU)
    assert not spills((6, 48, 24), (16, 16), torch.bfloat16, CPU)
    assert not spills((6, 96, 96), (16, 16), torch.float32, CPU)
    assert not spills((6, 96, 96), (16, 16), torch.bfloat16, torch.device("cuda"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in FLAT.values():
        check(*each)
    print("done")
