"""Draw training patches from prepared cases: half around organs, half elsewhere in the body, lightly changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
        images = torch.empty(batch_size, 1, *self.patch)
        labels = torch.empty(batch_size, 1, *self.patch, dtype=torch.uint8)
        for image, label in zip(images, labels, strict=True):
            self._fill(image, label, chance)
        return images, labels

    def _fill(self, image: torch.Tensor, label: torch.Tensor, chance: np.random.Generator) -> None:
        """Write one patch to where it is wanted: a batch is not put together a second time."""
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
        _copy_padded(case.image[(slice(None), *window)], image)
        _copy_padded(case.label[(slice(None), *window)], label)
        self._augment(image, label, chance)

    def _augment(self, image: torch.Tensor, label: torch.Tensor, chance: np.random.Generator) -> None:
        change = self.augmentation
        axes = [axis + 1 for axis, share in enumerate(change.flip_probability) if chance.random() < share]
        if axes:
            image.copy_(image.flip(axes))
            label.copy_(label.flip(axes))
        if change.intensity_scale or change.intensity_shift:
            factor = 1 + chance.uniform(-change.intensity_scale, change.intensity_scale)
            shift = chance.uniform(-change.intensity_shift, change.intensity_shift)
            torch.add(torch.tensor(shift, dtype=image.dtype), image, alpha=factor, out=image)  # in one go
        if change.noise:
            image.add_(torch.from_numpy(chance.standard_normal(image.shape, np.float32)), alpha=change.noise)


def _copy_padded(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy (1, x, y, z) into a target that may be larger: zeros (air, background) fill its far ends."""
    if source.shape != target.shape:
        target.zero_()
    target[tuple(slice(size) for size in source.shape)].copy_(source)
