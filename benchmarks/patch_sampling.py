"""Drawing training patches: time and memory beside MONAI's own transforms, which do the same.

MONAI: RandCropByPosNegLabeld with the indices of FgBgToIndicesd stored, SpatialPadd, RandScaleIntensityd,
RandShiftIntensityd, on a cached item. One thread.

    .venv/bin/python -m benchmarks.patch_sampling
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.transforms import (
    CastToTyped,
    Compose,
    FgBgToIndicesd,
    RandCropByPosNegLabeld,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SpatialPadd,
)

from fl_app.config import AugmentationSettings
from fl_app.data.cases import Case
from fl_app.data.preparation import PreparedCase, sample_centres
from fl_app.data.sampling import PatchSampler

SHAPE, PATCH, PATCHES = (280, 280, 160), (96, 96, 96), 4
BOTH = ("image", "label")


def milliseconds(call: Callable[[], object], repeats: int = 15) -> list[float]:
    """Wall time of each call, sorted."""
    call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return sorted(taken)


def main() -> None:
    """Draw four patches of 96^3 from a volume like a prepared abdominal CT (280 x 280 x 160)."""
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    image = torch.from_numpy(chance.random((1, *SHAPE), dtype=np.float32)).half()
    label = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    label[:, 60:110, 120:180, 70:110] = 1
    item = FgBgToIndicesd("label", image_key="image", image_threshold=0)({"image": image, "label": label})
    monai = Compose(
        [
            RandCropByPosNegLabeld(
                BOTH,
                "label",
                PATCH,
                num_samples=PATCHES,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
            SpatialPadd(BOTH, PATCH),
            CastToTyped("image", torch.float32),
            RandScaleIntensityd("image", 0.1, prob=1.0),
            RandShiftIntensityd("image", 0.1, prob=1.0),
        ]
    )
    organ, body = sample_centres(label > 0), sample_centres(label == 0)
    case = PreparedCase("", image, label, torch.eye(4), organ, body, Case("", Path(), None))
    ours = PatchSampler([case], PATCH, 0.5, AugmentationSettings())
    held = sum(np.asarray(item[key]).nbytes for key in ("label_fg_indices", "label_bg_indices"))
    rows = [
        ("MONAI transforms", milliseconds(lambda: monai(dict(item))), held),
        ("fedspleen", milliseconds(lambda: ours.draw(PATCHES, chance)), organ.nbytes + body.nbytes),
    ]
    for name, taken, size in rows:
        print(
            f"{name:18} {statistics.median(taken):7.1f} ms ({taken[0]:.1f} to {taken[-1]:.1f}) for {PATCHES} patches, "
            f"{size / 1e6:6.1f} MB of indices a case"
        )
    (_, theirs, more), (_, mine, less) = rows
    print(f"ratio: time {statistics.median(theirs) / statistics.median(mine):.1f}, memory {more / less:.0f}")


if __name__ == "__main__":
    main()
