"""A PReLU as networks are trained with it here, against torch's own: forward and backward, on a CPU.

The feature maps are those of the quick job's U-Net, finest first. Processor time, one thread.

    .venv/bin/python -m benchmarks.activation [--repeats N] [--json FILE]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import in_turns, show
from fl_app.training.adapting import adapt_layers

MAPS = ((1, 2, 96, 96, 48), (1, 16, 48, 48, 24), (1, 32, 24, 24, 12))


def both_ways(layer: nn.Module, kind: torch.dtype) -> Callable[[], None]:
    """Forward and backward through all maps."""
    pairs = [(torch.randn(shape, dtype=kind, requires_grad=True), torch.randn(shape, dtype=kind)) for shape in MAPS]

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
            for features, gradient in pairs:
                layer(features).backward(gradient)
                features.grad = None

    return run


def main(repeats: int, report: Path | None) -> None:
    """Time both and print."""
    torch.set_num_threads(1)
    ways = {}
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        ways[f"ours, {name}"] = both_ways(adapt_layers(nn.PReLU()).train(), kind)
        ways[f"torch, {name}"] = both_ways(nn.PReLU().train(), kind)
    in_turns(ways, 1)
    show(in_turns(ways, repeats), "ours, bf16", {}, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    main(options.repeats, options.json)
