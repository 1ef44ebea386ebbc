"""A second run on the same data: from the call for a site's data to the first batch of patches, in a fresh process.

Ours goes by the files' contents, which it knows while nobody has touched them, and maps the prepared cases into memory.
Beside it MONAI's PersistentDataset, which keeps the same prepared items on disk but trusts the files' names: it is
asked for every item once, since a batch may need any of them. Both find their cache filled. Imports are not counted.

    .venv/bin/python -m benchmarks.second_start [--cases 8] [--json FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from monai.data.dataset import PersistentDataset

from benchmarks.preprocessing import same_steps, write_case
from benchmarks.timing import show
from fl_app.config import AugmentationSettings, DataSettings
from fl_app.data.sampling import PatchSampler
from fl_app.data.site_data import load_site_data

SETTINGS = DataSettings(reuse_cases=True)


def write_site(folder: Path, count: int) -> None:
    """A site of CTs of 512 x 512 x 90, no two of them with the same voxels."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    case = write_case(folder.parent)
    assert case.label
    image = nibabel.load(case.image)
    voxels = np.asarray(image.dataobj)
    for number in range(count):
        turned = np.roll(voxels, number, axis=2)
        nibabel.save(nibabel.Nifti1Image(turned, image.affine), folder / "images" / f"case_{number}.nii.gz")
        (folder / "labels" / f"case_{number}.nii.gz").write_bytes(case.label.read_bytes())


def ours(site: Path, cache: Path) -> None:
    """Check, prepare or find prepared, and draw."""
    data = load_site_data(site, SETTINGS, 0, cache)
    PatchSampler(data.training, (96, 96, 96), 0.5, AugmentationSettings()).draw(4, np.random.default_rng(0))


def monai(site: Path, cache: Path) -> None:
    """Every item of a PersistentDataset."""
    items = [
        {"image": str(path), "label": str(site / "labels" / path.name)} for path in sorted((site / "images").iterdir())
    ]
    for _ in (dataset := PersistentDataset(items, same_steps(SETTINGS), cache)):
        pass
    assert len(dataset) == len(items)


WAYS: dict[str, Callable[[Path, Path], None]] = {"fedspleen": ours, "MONAI PersistentDataset": monai}


def fresh(way: str, site: Path, cache: Path) -> float:
    """Wall time of one way in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.second_start", "--way", way, str(site), str(cache)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(count: int, repeats: int, report: Path | None) -> None:
    """Fill both caches, then start again in turns."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        write_site(site, count)
        caches = {way: Path(folder) / f"cache {number}" for number, way in enumerate(WAYS)}
        first = {way: fresh(way, site, cache) for way, cache in caches.items()}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, cache in caches.items():
                times[way].append(fresh(way, site, cache))
    facts = {f"first run of {way}, s": seconds for way, seconds in first.items()}
    show(times, "fedspleen", {"cases": count, **facts}, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", nargs=3, metavar=("WAY", "SITE", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, site, cache = options.way
        started = time.perf_counter()
        WAYS[way](Path(site), Path(cache))
        print(json.dumps(time.perf_counter() - started))
    else:
        main(options.cases, options.repeats, options.json)
