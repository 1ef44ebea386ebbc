"""A run as it goes on: a line for each finished round, and in a terminal a status line below."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

from fl_app.reports.tables import number
from fl_app.result import Result, Round

_SITES_IN_A_LINE = 4


class Progress:
    """Prints what is new in a growing result; use as a context manager.

    Args:
        console: where to print. Outside a terminal there is no status line, only plain lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed = 0
        self._searched = 0
        self._ready = False
        self._started = time.monotonic()
        self._status = Status("checking the data and starting the sites", console=console)

    def __enter__(self) -> Progress:
        """Show the status line."""
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the status line away."""
        self._status.stop()

    def update(self, result: Result) -> None:
        """Print each round that is complete, its model validated."""
        if result.rounds and not self._ready:
            self._ready = True
            devices = ", ".join(sorted({f"{site.device} {site.precision}" for site in result.sites.values()}))
            self._console.print(
                f"{len(result.sites)} sites ready after {time.monotonic() - self._started:.0f} s ({devices}); "
                f"{result.parameters / 1e6:.1f} million parameters"
            )
            for site, reason in result.refused.items():
                self._console.print(f"{site} takes no part: {reason}", style="bold red")
        for place in range(self._printed, len(result.rounds)):
            if result.rounds[place].dice is None:
                break
            self._console.print(round_line(result, result.rounds[place]))
            self._printed = place + 1
        lines = search_lines(result)
        for line in lines[self._searched :]:
            self._console.print(line)
        self._searched = max(self._searched, len(lines))
        self._status.update(status_line(result))


def round_line(result: Result, done: Round) -> str:
    """One finished round in one line."""
    left_out = "".join(f"; {site} left out: {reason}" for site, reason in sorted(done.left_out.items()))
    width = len(str(result.rounds_asked))
    return (
        f"round {done.number:{width}}/{result.rounds_asked}  Dice {done.dice:.3f}  "
        f"{_sites(done)}  {done.seconds:.1f} s  {time_left(result)}{left_out}"
    )


def search_lines(result: Result) -> list[str]:
    """What an architecture search has finished so far, in the order of its stages."""
    search = result.search
    if search is None:
        return []
    asked = result.config["search"]
    lines = []
    for done in search.supernet_rounds:
        if done.seconds:
            losses = ", ".join(f"{name} {number(site.loss)}" for name, site in sorted(done.sites.items()))
            lines.append(
                f"supernet round {done.number}/{asked['supernet_rounds']}  loss: {losses}  {done.seconds:.1f} s"
            )
    lines += [
        f"generation {each.number}/{asked['generations']}  {each.scored} networks scored, best loss "
        f"{number(each.best_loss)}  {each.seconds:.1f} s"
        for each in search.generations
    ]
    if search.consensus:
        lines += [
            f"{name} takes a network of {each.parameters:,} parameters: {each.measured_bytes / 2**20:.1f} of "
            f"{each.budget_bytes / 2**20:.1f} MiB in training"
            for name, each in sorted(search.sites.items())
        ]
    lines += [
        f"found networks, round {done.number}/{asked['rounds']}  Dice {done.dice:.3f}  {_sites(done)}  "
        f"{done.seconds:.1f} s"
        for done in search.rounds
        if done.dice is not None
    ]
    return lines


def _sites(done: Round) -> str:
    """Each site's loss and Dice, or their range where there are many."""
    if len(done.sites) > _SITES_IN_A_LINE:
        losses = [site.loss for site in done.sites.values() if site.loss is not None]
        scores = [site.dice for site in done.sites.values() if site.dice is not None]
        return f"{len(done.sites)} sites: loss {_range(losses)}, Dice {_range(scores)}"
    parts = [f"{name} {number(site.loss)}/{number(site.dice)}" for name, site in sorted(done.sites.items())]
    return f"loss/Dice: {', '.join(parts)}"


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}" if values else "-"


def _names(names: list[str]) -> str:
    more = len(names) - _SITES_IN_A_LINE
    return ", ".join(names[:_SITES_IN_A_LINE]) + (f" and {more} more" if more > 0 else "")


def status_line(result: Result) -> str:
    """What is going on now."""
    if not result.rounds:
        return f"{len(result.sites)} sites have checked and prepared their data"
    current = result.rounds[-1]
    if result.search and not result.final:
        return "searching networks, and training what was found"
    if current.number == result.rounds_asked and current.seconds:
        return "testing the best model on the held-out test cases" if current.dice else "validating the last model"
    waiting = sorted(result.sites.keys() - current.sites.keys())
    who = f"waiting for {_names(waiting)}" if waiting else "averaging"
    return f"round {current.number}/{result.rounds_asked}: {who}; {time_left(result)}"


def time_left(result: Result) -> str:
    """An estimate from the rounds so far; their median is not disturbed by a slow first one."""
    seconds = sorted(done.seconds for done in result.rounds if done.seconds)
    if not seconds:
        return "time left unknown"
    rounds = result.rounds_asked - len(seconds)
    if not rounds:
        return "only the test is left"
    left = seconds[len(seconds) // 2] * rounds
    return f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"
