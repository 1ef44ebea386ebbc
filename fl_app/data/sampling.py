"""Draw training patches from prepared cases: half around organs, half elsewhere in the body, lightly changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

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

    def draw(self, batch_size: int, chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (batch, 1, x, y, z) float32 and labels (batch, 1, x, y, z) uint8."""
        images, labels = zip(*(self._patch(chance) for _ in range(batch_size)), strict=True)
        return torch.stack(images), torch.stack(labels)

    def _patch(self, chance: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
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
        image = _padded(case.image[(slice(None), *window)].to(torch.float32, copy=True), self.patch)
        label = _padded(case.label[(slice(None), *window)], self.patch)
        return self._augmented(image, label, chance)

    def _augmented(
        self, image: torch.Tensor, label: torch.Tensor, chance: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        change = self.augmentation
        axes = [axis + 1 for axis, share in enumerate(change.flip_probability) if chance.random() < share]
        if axes:
            image, label = image.flip(axes), label.flip(axes)
        if change.intensity_scale:
            image.mul_(1 + chance.uniform(-change.intensity_scale, change.intensity_scale))
        if change.intensity_shift:
            image.add_(chance.uniform(-change.intensity_shift, change.intensity_shift))
        if change.noise:
            image.add_(torch.from_numpy(chance.standard_normal(image.shape, np.float32)), alpha=change.noise)
        return image, label


def _padded(volume: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Pad (1, x, y, z) with zeros (air, background) at the far ends up to ``size``."""
    missing = [wanted - held for wanted, held in zip(size, volume.shape[1:], strict=True)]
    if not any(missing):
        return volume
    return functional.pad(volume, [0, missing[2], 0, missing[1], 0, missing[0]])
