"""A model that is ready to use on one scan after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fl_app.data.grid import Box
from fl_app.errors import DataError, UsageError
from fl_app.model_file import load_model
from fl_app.prediction.components import keep_largest
from fl_app.prediction.scan import Scan
from fl_app.prediction.slabs import SlabFile
from fl_app.prediction.stages import Advance, Prepared, bring_back, prepare
from fl_app.prediction.tiles import Tile, TiledProbabilities, infer_tile
from fl_app.training.precision import MixedPrecision, choose_precision
from fl_app.training.recompute import recompute
from fl_app.training.trainer import ready_network
from fl_app.training.windows import Windows

_TILES_OF_A_WORKER = 2


class Workers(Protocol):
    """Other processes, which see the same files and hold the same model.

    Attributes:
        count: how many there are.
    """

    count: int

    def compute(self, prepared: Prepared, boxes: Sequence[Box], paths: Sequence[Path]) -> Iterable[Tile]:
        """The tiles as they are done, in any order; each in the file at its path."""


@dataclass(frozen=True)
class Prediction:
    """A label map on the scan's own grid.

    Attributes:
        labels: (z, y, x) uint8 on disk, organs numbered from 1.
        voxels: of each organ.
        volumes_ml: of each organ.
        warnings: what makes the result doubtful, a sentence each.
    """

    labels: SlabFile
    voxels: dict[str, int]
    volumes_ml: dict[str, float]
    warnings: tuple[str, ...]


class Predictor:
    """A model that is ready to use.

    Args:
        model: a model file; it knows its network and its preprocessing.
        device: where to compute.
        flips: average the probabilities over all mirrorings that training used.
        largest_component: keep the largest connected part of each organ only.
        workers: other processes that compute the tiles; none: this one does.

    Raises:
        DataError: it is no model file, or its weights do not fit its network.
        UsageError: flips are asked for, and the model has never seen a mirrored body.
    """

    def __init__(
        self,
        model: Path,
        device: torch.device,
        flips: bool = False,
        largest_component: bool = False,
        workers: Workers | None = None,
    ) -> None:
        weights, self.info = load_model(model)
        self.job = self.info.job
        self.organs = tuple(self.job.data.labels)
        self.precision = MixedPrecision(choose_precision(self.job.training.precision, device), device)
        architecture = next(iter(self.info.architectures), "")
        self.network = ready_network(self.job, device, architecture).eval()
        if self.job.evaluation.windows_at_once == 1:  # of a site with little memory, where it was measured so
            recompute(self.network)
        # the file of a search also holds what other networks than its first one need
        wanted = self.network.state_dict()
        try:
            self.network.load_state_dict({name: weights[name] for name in wanted} if architecture else weights)
        except (RuntimeError, KeyError) as error:
            raise DataError(f"{model}: its weights do not fit its network: {error}") from None
        self._largest_component = largest_component
        self._workers = workers
        self._passes = _mirrorings(self.job.training.augmentation.flip_probability) if flips else [()]

    def predict(
        self, scan: Scan, scratch: Path, probabilities: Sequence[Path] = (), advance: Advance = lambda share: None
    ) -> Prediction:
        """Predict one scan.

        Args:
            scan: the image.
            scratch: an empty folder on a disk with room for the probabilities: 4 bytes a class and prepared voxel.
            probabilities: a NIfTI file to write for each organ, or none.
            advance: told the share that is done.

        Raises:
            DataError: the image cannot be read, or shows no body in Hounsfield units.
        """
        prepared = prepare(scan, self.job.data, scratch)
        found = self._infer(prepared, scratch, lambda done: advance(0.9 * done))
        labels = bring_back(found, prepared, scan, probabilities, scratch, lambda done: advance(0.9 + 0.1 * done))
        if self._largest_component:
            keep_largest(labels, len(self.organs))
        counts = np.zeros(1 + len(self.organs), np.int64)
        for _, slab in labels.slabs():
            counts += np.bincount(slab.ravel(), minlength=len(counts))
        voxels = {organ: int(count) for organ, count in zip(self.organs, counts[1:], strict=True)}
        millilitres = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
        return Prediction(
            labels,
            voxels,
            {organ: count * millilitres for organ, count in voxels.items()},
            tuple(finding.problem for finding in prepared.findings),
        )

    def tile(
        self, prepared: Prepared, box: Box, path: Path, advance: Callable[[int], None] = lambda windows: None
    ) -> Tile:
        """The probabilities of one tile, written to a new file; ``advance`` is told how many windows were done."""
        return infer_tile(self.network, prepared, box, self._passes, self.job, self.precision, path, advance)

    def _infer(self, prepared: Prepared, scratch: Path, advance: Advance) -> TiledProbabilities:
        windows = Windows(prepared.grid.shape, prepared.axis, self.job)
        # a few for each worker, so that none has to wait long for the last
        boxes = windows.tiles(_TILES_OF_A_WORKER * self._workers.count if self._workers else 1)
        paths = [scratch / f"probabilities-{number}" for number in range(len(boxes))]
        whole = sum(windows.count(box) for box in boxes) * len(self._passes)
        done = 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            advance(done / whole)

        tiles = []
        if self._workers:
            for tile in self._workers.compute(prepared, boxes, paths):
                count(windows.count(tile.box) * len(self._passes))
                tiles.append(tile)
        else:
            tiles = [self.tile(prepared, box, path, count) for box, path in zip(boxes, paths, strict=True)]
        return TiledProbabilities(tiles, prepared.axis, 1 + len(self.organs))


def _mirrorings(probability: Sequence[float]) -> list[tuple[int, ...]]:
    """The axes that each pass mirrors: all combinations of those that training mirrored."""
    axes = [axis for axis, share in enumerate(probability) if share > 0]
    if not axes:
        raise UsageError(
            "--flips: this model was trained without mirroring (training.augmentation.flip_probability), "
            "so mirrored scans would make it worse; leave --flips out"
        )
    passes: list[tuple[int, ...]] = [()]
    for axis in axes:
        passes += [(*mirrored, axis) for mirrored in passes]
    return passes
