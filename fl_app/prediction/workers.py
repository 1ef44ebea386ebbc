"""Tiles of a prediction spread over other processes by Dask; those of a Slurm cluster: `fl_app.prediction.slurm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fl_app.data.grid import Box
from fl_app.errors import DataError, UsageError
from fl_app.prediction.predictor import Predictor
from fl_app.prediction.stages import Prepared
from fl_app.prediction.tiles import Tile

_LOOK_SECONDS = 10.0


class DaskWorkers:
    """Workers of one model.

    Args:
        cluster: of Dask.
        count: how many workers it has.
        model: the model file, at the same path everywhere.
        device: where each worker computes, as on the command line.
        flips: as for `Predictor`.
        look: called while nothing comes; raises if nothing will.
    """

    def __init__(
        self,
        cluster: Any,
        count: int,
        model: Path,
        device: str,
        flips: bool,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.count = count
        self._look = look
        self._client = package("distributed").Client(cluster)
        self._model = model.absolute(), device, flips

    def compute(self, prepared: Prepared, boxes: Sequence[Box], paths: Sequence[Path]) -> Iterator[Tile]:
        """See `fl_app.prediction.predictor.Workers`.

        Raises:
            DataError: a worker has failed.
        """
        distributed = package("distributed")
        waiting = [
            self._client.submit(_tile, *self._model, prepared, box, path, pure=False)
            for box, path in zip(boxes, paths, strict=True)
        ]
        left = set(waiting)
        try:
            while left:
                try:
                    done, left = distributed.wait(left, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
                except distributed.TimeoutError:
                    self._look()
                    continue
                for future in done:
                    yield future.result()
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"a worker could not compute its tile: {' '.join(str(error).split())}") from error
        finally:
            self._client.cancel(waiting)

    def close(self) -> None:
        """Let go of the workers."""
        self._client.close()


@contextmanager
def local_workers(count: int, model: Path, device: str, flips: bool) -> Iterator[DaskWorkers]:
    """Processes on this machine, which share its cores; they listen on 127.0.0.1 only."""
    distributed = package("distributed")
    threads = max(1, torch.get_num_threads() // count)
    environment = {"OMP_NUM_THREADS": str(threads)}
    # what a worker holds is bounded by its tile; Dask shall not pause or end it
    with (
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            env=environment,
        ) as cluster,
        closing(DaskWorkers(cluster, count, model, device, flips)) as workers,
    ):
        yield workers


def package(name: str) -> Any:
    """A module that not every installation has.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError:
        raise UsageError(f"this needs {name}, which is not installed: pip install 'fedspleen[large]'") from None


@lru_cache(maxsize=1)
def _predictor(model: Path, device: str, flips: bool) -> Predictor:
    from fl_app.training.device import choose_device

    return Predictor(model, choose_device(device), flips)


def _tile(model: Path, device: str, flips: bool, prepared: Prepared, box: Box, path: Path) -> Tile:
    """What a worker does."""
    return _predictor(model, device, flips).tile(prepared, box, path)
