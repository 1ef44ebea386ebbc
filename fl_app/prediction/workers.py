"""Tiles of a prediction spread over other processes by Dask: on this machine, or as jobs of a Slurm cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import Field, ValidationError

from fl_app.config.base import Positive, Settings
from fl_app.errors import ConfigError, DataError, UsageError
from fl_app.prediction.predictor import Predictor
from fl_app.prediction.stages import Prepared
from fl_app.prediction.tiles import Tile
from fl_app.training.windows import Box


class SlurmSettings(Settings):
    """What Slurm is asked for; each worker is a job of its own."""

    workers: Positive = Field(description="jobs")
    cores: Positive = Field(4, description="of each job")
    memory_gb: Positive = Field(8, description="of each job")
    hours: Annotated[float, Field(gt=0)] = Field(4.0, description="after which Slurm ends a job")
    partition: str | None = None
    account: str | None = None
    interface: str | None = Field(None, description="network interface that jobs reach this machine by, such as ib0")
    directives: tuple[str, ...] = Field((), description="further lines of #SBATCH, such as --gres=gpu:1")


def read_slurm_settings(path: Path) -> SlurmSettings:
    """Settings from a YAML file.

    Raises:
        ConfigError: what is wrong in it, a sentence.
    """
    try:
        return SlurmSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{path}: is not YAML") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {wrong}") from None


def slurm_cluster(settings: SlurmSettings) -> Any:
    """A `dask_jobqueue.SLURMCluster` without jobs yet; nothing is submitted."""
    dask_jobqueue = _package("dask_jobqueue")
    minutes = max(1, round(60 * settings.hours))
    return dask_jobqueue.SLURMCluster(
        cores=settings.cores,
        processes=1,
        memory=f"{settings.memory_gb}GB",
        walltime=f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        queue=settings.partition,
        account=settings.account,
        interface=settings.interface,
        job_extra_directives=list(settings.directives),
        python=sys.executable,
        scheduler_options={"dashboard_address": None},
    )


class DaskWorkers:
    """Workers of one model.

    Args:
        cluster: of Dask.
        count: how many workers it has.
        model: the model file, at the same path everywhere.
        device: where each worker computes, as on the command line.
        flips: as for `Predictor`.
    """

    def __init__(self, cluster: Any, count: int, model: Path, device: str, flips: bool) -> None:
        self.count = count
        self._client = _package("distributed").Client(cluster)
        self._model = model.absolute(), device, flips

    def compute(self, prepared: Prepared, boxes: Sequence[Box], paths: Sequence[Path]) -> Iterator[Tile]:
        """See `fl_app.prediction.predictor.Workers`.

        Raises:
            DataError: a worker has failed.
        """
        distributed = _package("distributed")
        waiting = [
            self._client.submit(_tile, *self._model, prepared, box, path, pure=False)
            for box, path in zip(boxes, paths, strict=True)
        ]
        try:
            for future in distributed.as_completed(waiting):
                yield future.result()
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
    distributed = _package("distributed")
    threads = max(1, torch.get_num_threads() // count)
    environment = {"OMP_NUM_THREADS": str(threads)}
    # what a worker holds is bounded by its tile; Dask shall not pause or end it
    with distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=0,
        env=environment,
    ) as cluster:
        workers = DaskWorkers(cluster, count, model, device, flips)
        try:
            yield workers
        finally:
            workers.close()


@contextmanager
def slurm_workers(settings: SlurmSettings, model: Path, device: str, flips: bool) -> Iterator[DaskWorkers]:
    """Jobs of a Slurm cluster. Model, scan and results must lie on a disk that they share with this machine."""
    with slurm_cluster(settings) as cluster:
        cluster.scale(jobs=settings.workers)
        workers = DaskWorkers(cluster, settings.workers, model, device, flips)
        try:
            yield workers
        finally:
            workers.close()


def _package(name: str) -> Any:
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
