"""Where a job stands, as its checkpoints hold it: the networks' values, the search, and the result so far."""

from __future__ import annotations

import logging
from pathlib import Path

from fl_app.errors import FederationError
from fl_app.result import Result, read_result
from server.channel import Values
from server.checkpoint import Checkpoints
from server.found import SearchState
from server.record import Record
from server.training import Standing

_REST = "rest:"  # before the names of what was rounded off
_logger = logging.getLogger(__name__)


class Progress:
    """All that a server must not lose.

    Attributes:
        search: how far a search has come.

    Args:
        folder: for the checkpoints.
        record: of the run; its result is part of every checkpoint.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.search = SearchState()
        self._checkpoints = Checkpoints(folder)
        self._record = record
        self._standings: dict[str, Standing] = {}

    def is_finished(self) -> bool:
        """Whether this very job was finished before, so that only its server's end was in between."""
        path = self._record.path
        if not path.exists():
            return False
        earlier = read_result(path)
        if earlier.status != "finished" or earlier.config != self._record.result.config:
            return False
        self._record.result = earlier
        return True

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one.

        Raises:
            FederationError: it is of another job.
        """
        found = self._checkpoints.load()
        if found is None:
            return
        values, facts, damaged = found
        earlier = Result.model_validate(facts["result"])
        if earlier.config != self._record.result.config:
            raise FederationError("the checkpoint is of a job with other settings - submit this one as a new job")
        self._record.resume(earlier, damaged)
        self.search = SearchState.model_validate(facts["search"])
        for network, told in facts["standings"].items():
            prefix = f"{network}/"
            own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            best = told["best"]
            rest = {name.removeprefix(_REST): own.pop(name) for name in list(own) if name.startswith(_REST)}
            self._standings[network] = Standing(
                own, told["round"], (int(best[0]), float(best[1])) if best else None, told["norms"], rest
            )
        _logger.info(f"going on after {self.rounds}")

    @property
    def rounds(self) -> dict[str, int]:
        """The last finished round of each network."""
        return {network: standing.round for network, standing in self._standings.items()}

    def standing(self, network: str, untrained: Values) -> Standing:
        """Where the training of a network stands: as the checkpoint has it, else untrained."""
        return self._standings.setdefault(network, Standing(dict(untrained)))

    def save(self) -> None:
        """Write a checkpoint."""
        values = {
            f"{network}/{name}": value
            for network, standing in self._standings.items()
            for name, value in _named(standing).items()
        }
        standings = {
            network: {"round": each.round, "best": each.best, "norms": each.norms}
            for network, each in self._standings.items()
        }
        result = self._record.result.model_dump(mode="json")
        self._checkpoints.save(
            values, {"standings": standings, "search": self.search.model_dump(mode="json"), "result": result}
        )

    def clear(self) -> None:
        """Remove the checkpoints: the job needs them no more."""
        self._checkpoints.clear()


def _named(standing: Standing) -> Values:
    return standing.values | {_REST + name: value for name, value in standing.rest.items()}
