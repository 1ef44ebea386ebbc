"""Drawing training patches: time and memory beside MONAI's own transforms, which do the same.

MONAI: RandCropByPosNegLabeld with the indices of FgBgToIndicesd stored, or without as in its spleen tutorial, then
SpatialPadd, RandScaleIntensityd, RandShiftIntensityd, on a cached item. One thread, processor time, in turns.

    .venv/bin/python -m benchmarks.patch_sampling [--json FILE]
"""

import argparse
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

from benchmarks.timing import in_turns, show
from fl_app.config import AugmentationSettings
from fl_app.data.cases import Case
from fl_app.data.preparation import PreparedCase, sample_centres
from fl_app.data.sampling import PatchSampler

SHAPE, PATCH, PATCHES = (280, 280, 160), (96, 96, 96), 4
BOTH = ("image", "label")


def main(report: Path | None) -> None:
    """Draw four patches of 96^3 from a volume like a prepared abdominal CT (280 x 280 x 160)."""
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    image = torch.from_numpy(chance.random((1, *SHAPE), dtype=np.float32)).half()
    label = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    label[:, 60:110, 120:180, 70:110] = 1
    item = FgBgToIndicesd("label", image_key="image", image_threshold=0)({"image": image, "label": label})
    changes = [
        SpatialPadd(BOTH, PATCH),
        CastToTyped("image", torch.float32),
        RandScaleIntensityd("image", 0.1, prob=1.0),
        RandShiftIntensityd("image", 0.1, prob=1.0),
    ]
    tutorial = Compose(
        [
            RandCropByPosNegLabeld(BOTH, "label", PATCH, num_samples=PATCHES, image_key="image", image_threshold=0),
            *changes,
        ]
    )
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
            *changes,
        ]
    )
    organ, body = sample_centres(label > 0), sample_centres(label == 0)
    case = PreparedCase("", image, label, torch.eye(4), organ, body, Case("", Path(), None))
    ours = PatchSampler([case], PATCH, 0.5, AugmentationSettings())
    plain = {"image": image.float(), "label": label}
    held = sum(np.asarray(item[key]).nbytes for key in ("label_fg_indices", "label_bg_indices"))
    ways: dict[str, Callable[[], object]] = {
        "fedspleen": lambda: ours.draw(PATCHES, chance),
        "MONAI, indices stored": lambda: monai(dict(item)),
        "MONAI, as in its tutorial": lambda: tutorial(dict(plain)),
    }
    in_turns(ways, 2)
    own = organ.nbytes + body.nbytes
    show(in_turns(ways, 15), "fedspleen", {"memory of MONAI's indices over ours": held / own}, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    main(parser.parse_args().json)
