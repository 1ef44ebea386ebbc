"""Measures whether the phantom cohort is hard enough to mean something.

    .venv/bin/python -m benchmarks.phantom_difficulty                   thresholds only, about a minute
    .venv/bin/python -m benchmarks.phantom_difficulty --learn           also a small 3D U-Net on all sites' cases
    .venv/bin/python -m benchmarks.phantom_difficulty --learn --alone   and one on each site's cases

An oracle that knows the truth searches one window of HU for the whole cohort, with and without smoothing, and the
better of two rules for picking the spleen among the connected components. What it reaches is what a method without
any notion of anatomy reaches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label, zoom

from fl_app.data.phantom import make_cohort

SMOOTHINGS_MM = (0.0, 4.0)
LOWEST_HU = range(10, 121, 10)
WIDTHS_HU = (40, 60, 80, 120)


@dataclass(frozen=True)
class Case:
    """One case in RAS order: HU, truth (bool), spacing (mm)."""

    image: NDArray[np.float32]
    truth: NDArray[np.bool_]
    spacing: tuple[float, float, float]


def cases_of(site: Path) -> Iterator[Case]:
    """Reads a site's cases, turned to RAS."""
    for path in sorted((site / "imagesTr").glob("*.nii.gz")):
        image, truth = (
            nibabel.as_closest_canonical(nibabel.load(site / folder / path.name)) for folder in ("imagesTr", "labelsTr")
        )
        x, y, z = map(float, image.header.get_zooms())
        yield Case(np.asarray(image.dataobj, np.float32), np.asarray(truth.dataobj) > 0, (x, y, z))


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Returns the Dice coefficient of two masks, 0 to 1."""
    return 2.0 * float((one & other).sum()) / max(float(one.sum() + other.sum()), 1.0)


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the largest connected component."""
    parts, count = label(mask)
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count else mask


def threshold_scores(case: Case) -> NDArray[np.float64]:
    """Returns the Dice for each smoothing, lowest HU, width and rule: shape (smoothings, lowest, widths, 2)."""
    scores = np.zeros((len(SMOOTHINGS_MM), len(LOWEST_HU), len(WIDTHS_HU), 2))
    for first, smoothing in enumerate(SMOOTHINGS_MM):
        image = gaussian_filter(case.image, smoothing / np.asarray(case.spacing)) if smoothing else case.image
        for second, lowest in enumerate(LOWEST_HU):
            for third, width in enumerate(WIDTHS_HU):
                mask = (image >= lowest) & (image <= lowest + width)
                left = mask.copy()
                # x runs to the patient's right
                left[mask.shape[0] // 2 :] = False
                scores[first, second, third] = (
                    dice(largest(mask), case.truth),
                    dice(largest(left), case.truth),
                )
    return scores


def best_threshold(scores: list[NDArray[np.float64]]) -> tuple[list[float], float, str]:
    """Takes each site's scores, shape (cases, smoothings, lowest, widths, 2), and finds one setting for all.

    Returns each site's mean Dice under that setting, the mean over all cases, and the setting in words.
    """
    means = np.concatenate(scores).mean(0)
    best = np.unravel_index(means.argmax(), means.shape)
    lowest = LOWEST_HU[best[1]]
    settings = (
        f"{lowest} to {lowest + WIDTHS_HU[best[2]]} HU, smoothed {SMOOTHINGS_MM[best[0]]} mm, "
        f"largest component {('anywhere', 'on the left')[best[3]]}"
    )
    return [float(score[(slice(None), *best)].mean()) for score in scores], float(means.max()), settings


def resampled(case: Case, spacing_mm: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns image (0 to 1 for -160 to 240 HU) and truth on cubic voxels."""
    factors = np.asarray(case.spacing) / spacing_mm
    image = np.clip((zoom(case.image, factors, order=1) + 160) / 400, 0, 1)
    return image.astype(np.float32), zoom(case.truth.astype(np.float32), factors, order=1)


def learn(training: list[Case], tests: list[list[Case]], steps: int, seed: int = 0) -> list[float]:
    """Trains a small 3D U-Net and returns its mean Dice on each list of test cases."""
    import torch
    from monai.inferers import sliding_window_inference
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    spacing, patch = 4.0, (64, 64, 48)
    network = UNet(3, 1, 2, (16, 32, 64, 128), (2, 2, 2), num_res_units=0, norm="instance")
    network = network.to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.2)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    volumes = []
    for case in training:
        image, truth = resampled(case, spacing)
        short = [(0, max(0, size - have)) for size, have in zip(patch, image.shape, strict=True)]
        volumes.append((np.pad(image, short), np.pad(truth, short) > 0.5))
    for _ in range(steps):
        images, truths = [], []
        for index in random.integers(len(volumes), size=2):
            image, truth = volumes[index]
            places = np.argwhere(truth)
            room = np.asarray(image.shape) - patch
            if random.random() < 0.6 and len(places):
                start = places[random.integers(len(places))] - (random.random(3) * patch).astype(int)
            else:
                start = (random.random(3) * (room + 1)).astype(int)
            block = tuple(slice(s, s + p) for s, p in zip(np.clip(start, 0, room), patch, strict=True))
            change = random.normal(0, 0.06), random.uniform(0.85, 1.15)
            images.append(image[block] * change[1] + change[0])
            truths.append(truth[block])
        inputs = torch.from_numpy(np.stack(images)[:, None].astype(np.float32))
        wanted = torch.from_numpy(np.stack(truths)[:, None].astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(inputs.to(memory_format=torch.channels_last_3d))
        optimiser.zero_grad(set_to_none=True)
        loss_of(outputs.float(), wanted).backward()
        optimiser.step()
        schedule.step()
    network.eval()
    results = []
    for cases in tests:
        scores = []
        for case in cases:
            image, truth = resampled(case, spacing)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                outputs = sliding_window_inference(
                    torch.from_numpy(image)[None, None], patch, 2, network, overlap=0.3, mode="gaussian"
                )
            scores.append(dice(outputs[0].argmax(0).numpy() > 0, truth > 0.5))
        results.append(float(np.mean(scores)))
    return results


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn", action="store_true", help="also train a small U-Net (needs torch and MONAI)")
    parser.add_argument("--alone", action="store_true", help="with --learn: also train one at each site alone")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        paths = make_cohort(Path(folder) / "cohort", arguments.sites, arguments.seed)
        print(f"made in {time.perf_counter() - started:.1f} s")
        sites = [list(cases_of(path)) for path in paths]
    names = [path.name for path in paths]
    print("best threshold".ljust(22), *(name.rjust(8) for name in (*names, "all")))
    scores = [np.stack([threshold_scores(case) for case in cases]) for cases in sites]
    by_site, mean, settings = best_threshold(scores)
    print("one for all sites".ljust(22), *(f"{value:8.3f}" for value in (*by_site, mean)), "  ", settings)
    for position, (name, score) in enumerate(zip(names, scores, strict=True)):
        _, mean, settings = best_threshold([score])
        print(f"for {name} only".ljust(22) + " " * 9 * position, f"{mean:8.3f}", "  ", settings)
    if not arguments.learn:
        return
    import torch

    torch.set_num_threads(arguments.threads)
    # the last quarter of each site's cases is for testing
    cuts = [max(1, round(len(cases) * 0.75)) for cases in sites]
    training = [cases[:cut] for cases, cut in zip(sites, cuts, strict=True)]
    tests = [cases[cut:] for cases, cut in zip(sites, cuts, strict=True)]
    runs = [("U-Net, all sites", [case for cases in training for case in cases])]
    if arguments.alone:
        runs += [(f"U-Net, {name} only", cases) for name, cases in zip(names, training, strict=True)]
    for name, cases in runs:
        started = time.perf_counter()
        results = learn(cases, tests, arguments.steps, arguments.seed)
        mean = float(np.average(results, weights=[len(cases) for cases in tests]))
        values = " ".join(f"{value:8.3f}" for value in (*results, mean))
        print(name.ljust(22), values, f"   {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
