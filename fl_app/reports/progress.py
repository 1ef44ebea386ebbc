"""A run as it goes on: a line for each finished round, and in a terminal a status line below."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

from fl_app.messages import PERSONALISE, TRAIN
from fl_app.reports.tables import number
from fl_app.result import Result, Round
from fl_app.under_way import UnderWay

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

    def update(self, result: Result, under_way: UnderWay | None = None) -> None:
        """Print each round that is complete, its model validated; below, what the sites are doing."""
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
        self._status.update(status_line(result, under_way or UnderWay()))


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


def status_line(result: Result, under_way: UnderWay) -> str:
    """What is going on now."""
    if under_way.task == PERSONALISE:
        return "each site makes the models that it could keep"
    steps = result.config["training"]["steps_per_round"]
    search, settings = result.search, result.config["search"]
    if search and not result.final:
        for what, rounds, asked, each in (
            ("found networks, round", search.rounds, settings["rounds"], steps),
            ("supernet round", search.supernet_rounds, settings["supernet_rounds"], settings["supernet_steps"]),
        ):
            if rounds and not rounds[-1].seconds:
                return f"{what} {rounds[-1].number}/{asked}: {_waiting(result, rounds[-1], under_way, each)}"
        return "the sites score networks and choose their own"
    if not result.rounds:
        return f"{len(result.sites)} sites have checked and prepared their data"
    current = result.rounds[-1]
    if current.number == result.rounds_asked and current.seconds:
        return "testing the best model on the held-out test cases" if current.dice else "validating the last model"
    # Ditto trains a second network in the same round
    who = _waiting(result, current, under_way, steps * (2 if result.config["personal"]["ditto"] else 1))
    return f"round {current.number}/{result.rounds_asked}: {who}; {time_left(result)}"


def _waiting(result: Result, current: Round, under_way: UnderWay, asked: int) -> str:
    """Who has not answered in a round, and how many of the steps each has done."""
    names = sorted(result.sites.keys() - current.sites.keys())
    if not names:
        return "averaging"
    steps = {name: under_way.steps[name] for name in names if under_way.task == TRAIN and name in under_way.steps}
    if len(names) > _SITES_IN_A_LINE:
        done = f" ({min(steps.values())} to {max(steps.values())} of {asked} steps)" if steps else ""
        return f"waiting for {_names(names)}{done}"
    told = {name: f" ({done} of {asked} steps)" for name, done in steps.items()}
    return f"waiting for {', '.join(name + told.get(name, '') for name in names)}"


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
