"""Draw training patches from prepared cases: half around organs, half elsewhere in the body, lightly changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fl_app.config import AugmentationSettings
from fl_app.data.preparation import PreparedCase


class PatchSampler:
    """Endless batches of patches from a site's training cases, drawn from one random stream.

    Args:
        cases: prepared training cases; each volume smaller than a patch is padded with air.
        patch: patch size in voxels, x y z.
        foreground_share: chance that a patch is centred on an organ voxel, 0 to 1.
        augmentation: random changes.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch: tuple[int, int, int],
        foreground_share: float,
        augmentation: AugmentationSettings,
    ) -> None:
        self.cases = list(cases)
        self.patch = patch
        self.foreground_share = foreground_share
        self.augmentation = augmentation

    def draw(
        self, batch_size: int, chance: np.random.Generator, share: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (batch, 1, x, y, z) float32 and labels (batch, 1, x, y, z) uint8, where the cases are.

        Args:
            batch_size: patches in the batch.
            chance: goes on as far for a share as for the whole batch.
            share: which patches of the batch to make.
        """
        wanted = [self._choose(chance) for _ in range(batch_size)][share]
        device = self.cases[0].image.device if self.cases else None
        images = torch.empty(len(wanted), 1, *self.patch, device=device)
        labels = torch.empty(len(wanted), 1, *self.patch, dtype=torch.uint8, device=device)
        # each patch is written to where it is wanted: a batch is not put together a second time
        for patch, image, label in zip(wanted, images, labels, strict=True):
            _copy_padded(patch.case.image[(slice(None), *patch.window)], image)
            _copy_padded(patch.case.label[(slice(None), *patch.window)], label)
            patch.change.apply(image, label)
        return images, labels

    def _choose(self, chance: np.random.Generator) -> _Patch:
        case = self.cases[chance.integers(len(self.cases))]
        wanted = case.organ_centres if chance.random() < self.foreground_share else case.body_centres
        # a case without the organ, or filled by it, still gives patches
        centres = wanted if len(wanted) else (case.organ_centres if len(case.organ_centres) else case.body_centres)
        shape = case.label.shape[1:]
        flat = int(centres[chance.integers(len(centres))]) if len(centres) else int(chance.integers(np.prod(shape)))
        centre = np.unravel_index(flat, shape)
        corner = [
            int(np.clip(middle - size // 2, 0, max(whole - size, 0)))
            for middle, size, whole in zip(centre, self.patch, shape, strict=True)
        ]
        window = tuple(slice(start, start + size) for start, size in zip(corner, self.patch, strict=True))
        return _Patch(case, window, self._change(chance))

    def _change(self, chance: np.random.Generator) -> _Change:
        wanted = self.augmentation
        flips = tuple(axis + 1 for axis, share in enumerate(wanted.flip_probability) if chance.random() < share)
        scale, shift = 1.0, 0.0
        if wanted.intensity_scale or wanted.intensity_shift:
            scale += chance.uniform(-wanted.intensity_scale, wanted.intensity_scale)
            shift = chance.uniform(-wanted.intensity_shift, wanted.intensity_shift)
        noise = chance.standard_normal((1, *self.patch), np.float32) if wanted.noise else None
        return _Change(flips, scale, shift, wanted.noise, noise)


@dataclass(frozen=True)
class _Change:
    """What is done to a patch: mirrored along axes, image * scale + shift, noise * strength added."""

    flips: tuple[int, ...]
    scale: float
    shift: float
    strength: float
    noise: NDArray[np.float32] | None

    def apply(self, image: torch.Tensor, label: torch.Tensor) -> None:
        if self.flips:
            image.copy_(image.flip(self.flips))
            label.copy_(label.flip(self.flips))
        if (self.scale, self.shift) != (1.0, 0.0):
            torch.add(torch.tensor(self.shift, dtype=image.dtype), image, alpha=self.scale, out=image)  # in one go
        if self.noise is not None:
            image.add_(torch.from_numpy(self.noise).to(image.device), alpha=self.strength)


@dataclass(frozen=True)
class _Patch:
    """Where a patch is, and what is done to it."""

    case: PreparedCase
    window: tuple[slice, ...]
    change: _Change


def _copy_padded(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy (1, x, y, z) into a target that may be larger: zeros (air, background) fill its far ends."""
    if source.shape != target.shape:
        target.zero_()
    target[tuple(slice(size) for size in source.shape)].copy_(source)
