"""Soft Dice plus cross-entropy that keeps nothing for the backward pass but the logits and the labels.

MONAI's `DiceCELoss` keeps the logits in fp32, their softmax, their log-softmax and the one-hot labels: 16 bytes for
each class and voxel of the patch, a fifth of what training a small U-Net takes (``benchmarks/loss_memory.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fl_app.training.slabs import slabs

_SMOOTH = 1e-5  # MONAI's smooth_nr and smooth_dr
# computed at a time: 256 KiB in fp32, which is quicker on a CPU, too, and adds little to the peak; a GPU is slow with
# small ones
_CHUNK_VALUES = {"cpu": 2**16, "cuda": 2**22}


@dataclass(frozen=True)
class Rest:
    """The patches of a batch that other processes have.

    Attributes:
        batch_size: patches in the whole batch.
        total: sums a tensor over the processes, in place.
    """

    batch_size: int
    total: Callable[[torch.Tensor], object]


class DiceCrossEntropy(nn.Module):
    """MONAI's `DiceCELoss` with ``softmax``, ``to_onehot_y`` and ``batch`` on and the background left out.

    With p the softmax of the logits, t the one-hot labels, N voxels and C organs:

        L = 1/C sum_c (1 - (2 I_c + s) / (D_c + s)) - 1/N sum_v log p_{y_v, v}
        I_c = sum_v p_cv t_cv,  D_c = sum_v p_cv + sum_v t_cv,  s = 1e-5

    (Milletari et al., 3DV 2016, eq. 4 without squares; Isensee et al., Nature Methods 2021.)

    Args:
        overwrite: write the gradient over the logits, which are then of no use to others.
    """

    def __init__(self, overwrite: bool = False) -> None:
        super().__init__()
        self._overwrite = overwrite

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, rest: Rest | None = None) -> torch.Tensor:
        """The loss, fp32 (or fp64, if the logits are).

        Args:
            logits: (batch, 1 + organs, x, y, z), in any precision.
            labels: (batch, 1, x, y, z), class numbers of any type.
            rest: of the batch, if other processes have it: the loss is that of all patches, the gradient of these.
        """
        loss: torch.Tensor = _DiceCrossEntropy.apply(logits, labels, rest, self._overwrite)
        return loss


class _DiceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, rest: Rest | None, overwrite: bool
    ) -> torch.Tensor:
        classes = logits.shape[1]
        exact = torch.promote_types(logits.dtype, torch.float32)
        counts = torch.zeros(3 * classes + 1, dtype=exact, device=logits.device)
        sums, entropy = counts[1:].view(3, classes), counts[0]  # p t, p, t
        ctx.voxels, ctx.overwrite = labels.numel(), overwrite
        for part in slabs(logits, 2, _CHUNK_VALUES[logits.device.type]):
            log_p, target = logits[:, :, part].to(exact).log_softmax(1), labels[:, 0, part]
            masks = [(target == each).to(exact) for each in range(classes)]
            # products of whole planes: on a CPU far quicker than gathering voxel by voxel
            entropy -= sum(torch.dot(log_p[:, each].flatten(), masks[each].flatten()) for each in range(classes))
            p = log_p.exp_()
            for each in range(1, classes):
                sums[0, each] += torch.dot(p[:, each].flatten(), masks[each].flatten())
                sums[1, each] += p[:, each].sum()
                sums[2, each] += masks[each].sum()
        if rest:
            ctx.voxels = ctx.voxels // len(labels) * rest.batch_size
            rest.total(counts)
        ctx.save_for_backward(logits, labels, sums)
        intersection, total = sums[0, 1:], sums[1, 1:] + sums[2, 1:]
        dice = 1 - (2 * intersection + _SMOOTH) / (total + _SMOOTH)
        return dice.mean() + entropy / ctx.voxels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """With g_c = dL/dp_c of the Dice part: dL/dz_k = p_k (g_k - sum_c g_c p_c) + (p_k - t_k) / N."""
        logits, labels, sums = ctx.saved_tensors
        classes = logits.shape[1]
        total = sums[1] + sums[2] + _SMOOTH
        outside = (2 * sums[0] + _SMOOTH) / total**2 / (classes - 1)
        inside = outside - 2 / total / (classes - 1)
        share = 1 / ctx.voxels
        gradient = logits if ctx.overwrite else torch.empty_like(logits)
        for part in slabs(logits, 2, _CHUNK_VALUES[logits.device.type]):
            p, target = logits[:, :, part].to(sums.dtype).softmax(1), labels[:, 0, part]
            masks = [(target == each).to(p.dtype) for each in range(classes)]
            slopes = [outside[each] + (inside[each] - outside[each]) * masks[each] for each in range(1, classes)]
            mean = torch.zeros_like(masks[0]) - share
            for each, slope in enumerate(slopes, start=1):
                mean.addcmul_(slope, p[:, each])
            gradient[:, 0, part] = -(p[:, 0].mul_(mean).add_(masks[0], alpha=share)).mul_(upstream)
            for each, slope in enumerate(slopes, start=1):
                rise = p[:, each].mul_(slope.sub_(mean)).sub_(masks[each], alpha=share)
                gradient[:, each, part] = rise.mul_(upstream)
        return gradient, None, None, None
