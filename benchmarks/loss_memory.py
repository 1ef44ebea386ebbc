"""Dice plus cross-entropy: bytes kept for the backward pass, and time, against MONAI's DiceCELoss in the same run.

python -m benchmarks.loss_memory
"""

from __future__ import annotations

import statistics
import time

import torch
from monai.losses.dice import DiceCELoss
from torch import nn

from fl_app.training.objectives import build_loss

PATCHES = ((1, 96, 96, 48), (2, 96, 96, 96))
REPEATS = 9


class InFullPrecision(nn.Module):
    """MONAI's loss as it is used with mixed precision: on logits in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.loss(logits.float(), labels)


def kept_bytes(loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes of all storages that the backward pass needs."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(logits, labels)
    value.backward()
    return sum(kept.values())


def seconds(loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Median time of forward and backward."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        loss(logits, labels).backward()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print a table."""
    print(f"{'patches':<20}{'':<8}{'MONAI':>10}{'ours':>10}{'ratio':>8}")
    for batch, *patch in PATCHES:
        logits = torch.randn(batch, 2, *patch).to(torch.bfloat16).requires_grad_()
        labels = (torch.rand(batch, 1, *patch) < 0.02).to(torch.uint8)
        losses = InFullPrecision(), build_loss("dice_ce")
        name = f"{batch} x {'x'.join(map(str, patch))}"
        theirs, ours = (kept_bytes(loss, logits, labels) / 2**20 for loss in losses)
        print(f"{name:<20}{'MiB':<8}{theirs:>10.1f}{ours:>10.1f}{theirs / ours:>8.1f}")
        theirs, ours = (seconds(loss, logits, labels) for loss in losses)
        print(f"{name:<20}{'seconds':<8}{theirs:>10.3f}{ours:>10.3f}{theirs / ours:>8.1f}")


if __name__ == "__main__":
    main()
