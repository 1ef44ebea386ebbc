"""A U-Net's first and last layers, in packed maps and not: forward and backward on the maps of a patch of 96^3.

The first is a convolution of the image in strides of two, twice; the last one a transposed convolution to two channels
with its normalisation and activation, and a residual unit. Against the same as MONAI builds them, and as they were
computed before packing: each layer by itself in the quickest way that is known here. Packed first convolutions are
timed on a processor without matrix units (AMX), too, where they are not used. One thread, processor time.

    .venv/bin/python -m benchmarks.packing [--repeats N] [--json FILE]
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from benchmarks.timing import in_turns, show
from fl_app.config import Job
from fl_app.networks.registry import build_network
from fl_app.training import layers
from fl_app.training.adapting import adapt_layers

IMAGE, BELOW = (1, 1, 96, 96, 96), (1, 32, 48, 48, 48)


def both_ways(layer: nn.Module, shape: tuple[int, ...], kind: torch.dtype, times: int) -> Callable[[], None]:
    """Forward and backward; the image needs no gradient."""
    layer = cast(Any, layer).to(memory_format=torch.channels_last_3d)
    features = torch.randn(shape).to(kind).contiguous(memory_format=torch.channels_last_3d)
    features.requires_grad_(shape != IMAGE)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
        gradient = torch.randn_like(layer(features))

    def run() -> None:
        for _ in range(times):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
                result = layer(features)
            result.backward(gradient)

    return run


def by_layer(block: nn.Module) -> nn.Module:
    """Each layer in the quick way, but not all of them together."""
    # a third part: it is no last block any more
    return adapt_layers(nn.Sequential(*block.children(), nn.Identity()))


def main(repeats: int, report: Path | None) -> None:
    """Time all and print: the last block in both precisions, the first two convolutions in bf16."""
    torch.set_num_threads(1)
    network = cast(Any, build_network(Job.model_validate({"network": {"channels": [16, 32, 64, 128]}})))
    first, _, last = network.model
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        blocks = {"packed": adapt_layers(copy.deepcopy(last)), "by layer": by_layer(copy.deepcopy(last)), "MONAI": last}
        ways = {f"last block, {each}, {name}": both_ways(layer, BELOW, kind, 1) for each, layer in blocks.items()}
        compare(ways, repeats, report and report.with_stem(f"{report.stem}-last-{name}"))
    layers.HAS_TILES = True
    kinds = {"packed": adapt_layers(copy.deepcopy(first.residual)), "torch": first.residual}
    ways = {f"first two, {each}, bf16": both_ways(layer, IMAGE, torch.bfloat16, 2) for each, layer in kinds.items()}
    compare(ways, repeats, report and report.with_stem(f"{report.stem}-first-bf16"))


def compare(ways: Mapping[str, Callable[[], None]], repeats: int, report: Path | None) -> None:
    """Time some ways in turns, and print what the others take of the first one's time."""
    in_turns(ways, 1)
    show(in_turns(ways, repeats), next(iter(ways)), {}, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.repeats, options.json)
