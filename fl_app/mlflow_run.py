"""A run's curves in MLflow, for who asks for them; MLflow is not part of what is installed by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fl_app.errors import FederationError, UsageError

_EXPERIMENT = "fedspleen"
_TAG = "fedspleen.job"


class MlflowRun:
    """A run of MLflow's experiment ``fedspleen``; one that was begun before for the same job is gone on with.

    Args:
        address: of the tracking server, or a folder's as ``file:///...``.
        job_id: the job.

    Raises:
        UsageError: MLflow is not installed.
        FederationError: it cannot be reached, or refuses.
    """

    def __init__(self, address: str, job_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves for its makers
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise UsageError("--mlflow needs MLflow, which is not installed: pip install mlflow-skinny") from None
        self._address = address
        self._drawn: dict[str, set[int]] = {}
        with self._asking():
            self._client = MlflowClient(tracking_uri=address)
            known = self._client.get_experiment_by_name(_EXPERIMENT)
            experiment = known.experiment_id if known else self._client.create_experiment(_EXPERIMENT)
            begun = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{job_id}'")
            run = begun[0] if begun else self._client.create_run(experiment, run_name=job_id, tags={_TAG: job_id})
            self._run = str(run.info.run_id)

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve, unless it is there."""
        with self._asking():
            if name not in self._drawn:
                self._drawn[name] = {each.step for each in self._client.get_metric_history(self._run, name)}
            if step not in self._drawn[name]:
                self._client.log_metric(self._run, name, value, step=step)
                self._drawn[name].add(step)

    def flush(self) -> None:
        """Nothing waits to be seen."""

    def close(self) -> None:
        """End the run."""
        with self._asking():
            self._client.set_terminated(self._run)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise FederationError(f"MLflow at {self._address}: {str(error).splitlines()[0][:200]}") from None
