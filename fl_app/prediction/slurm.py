"""Workers of a prediction that are jobs of a Slurm cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from fl_app.config.base import Positive, Settings
from fl_app.errors import ConfigError, DataError, UsageError
from fl_app.prediction.workers import DaskWorkers, package

_ANSWER_SECONDS = 0.1


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


def slurm_cluster(settings: SlurmSettings, logs: Path) -> Any:
    """A `dask_jobqueue.SLURMCluster` without jobs yet; nothing is submitted.

    Args:
        settings: what is asked for.
        logs: the folder for what the jobs print.
    """
    dask_jobqueue = package("dask_jobqueue")
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
        log_directory=str(logs),
        python=sys.executable,
        scheduler_options={"dashboard_address": None},
        job_cls=_job_class(),
    )


def _job_class() -> type:
    """Dask's job of Slurm that keeps what Slurm says when it refuses it, where Dask prints a traceback."""
    from dask_jobqueue.slurm import SLURMJob
    from distributed.core import Status

    class Job(SLURMJob):
        refusal = ""

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError) as error:  # what was printed stands last
                _, printed, reason = str(error).partition("stderr:\n")
                self.refusal = _said(reason if printed else str(error))
                self.status = Status.running  # else Dask prints a traceback

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed  # which Dask demands of each job that is still in memory when a cluster closes

    return Job


@contextmanager
def slurm_workers(path: Path, logs: Path, model: Path, device: str, flips: bool) -> Iterator[DaskWorkers]:
    """Jobs of a Slurm cluster. Model, scan and results must lie on a disk that they share with this machine.

    Args:
        path: the settings.
        logs: a folder for what the jobs print; it is left only where something goes wrong.
        model: see `DaskWorkers`, as the rest.
        device: as above.
        flips: as above.

    Raises:
        ConfigError: the settings are wrong, or Slurm refuses them.
        UsageError: Slurm is not here.
    """
    settings = read_slurm_settings(path)
    if not shutil.which("sbatch"):
        raise UsageError("--slurm: there is no sbatch here - run the command where Slurm jobs can be submitted")
    lost = False  # whether the jobs ended by themselves, so that what they printed is wanted
    try:
        with slurm_cluster(settings, logs.absolute()) as cluster:
            _try(cluster.job_script(), path)
            cluster.scale(jobs=settings.workers)
            jobs, refusals = _submitted(cluster, settings.workers)
            if not jobs:
                raise ConfigError(f"{path}: Slurm took none of the jobs: {refusals[0]}")

            def look() -> None:
                nonlocal lost
                if not _any_left(jobs):
                    lost = True
                    raise DataError(f"the Slurm jobs have ended before their work was done; see {logs}")

            with closing(DaskWorkers(cluster, settings.workers, model, device, flips, look)) as workers:
                yield workers
    except ConfigError:
        shutil.rmtree(logs, ignore_errors=True)  # Dask has made it; nothing was submitted
        raise
    if not lost:
        shutil.rmtree(logs, ignore_errors=True)


def _try(script: str, path: Path) -> None:
    """Ask Slurm whether it would take such a job."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{path}: Slurm takes no such job: {_said(done.stderr)}")


def _said(text: str) -> str:
    """What sbatch printed, in one line."""
    return (
        " ".join(text.replace("sbatch: error:", "").replace("allocation failure:", "").split()) or "it gave no reason"
    )


def _submitted(cluster: Any, count: int) -> tuple[list[str], list[str]]:
    """The numbers of the jobs that Slurm has taken, and what it said of others, once it has answered for all.

    Dask forgets jobs that have ended.
    """
    while len(cluster.workers) < count:
        time.sleep(_ANSWER_SECONDS)
    jobs = list(cluster.workers.values())
    return [job.job_id for job in jobs if job.job_id], [job.refusal for job in jobs if job.refusal]


def _any_left(jobs: list[str]) -> bool:
    """Whether some of these jobs wait or run; also where Slurm does not say."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={','.join(jobs)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    forgotten = "Invalid job id" in done.stderr
    return bool(done.stdout.strip()) or (done.returncode != 0 and not forgotten)
