"""What a search has found so far, and which values of the sites' different networks travel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, Field

from fl_app.messages import SearchReady, SiteReady
from fl_app.networks.widths import Width, read_width
from fl_app.result import SearchResult, SearchSite
from server.training import Names

Held = dict[str, Names]


class SearchState(BaseModel):
    """How far a search has come; part of a checkpoint.

    Attributes:
        ready: who takes part, and what each site's memory holds, as it said when the job began.
        generation: the last finished one.
        losses: mean validation loss of each scored network (JSON).
        consensus: the network for all.
        derived: each site's network.
    """

    ready: dict[str, SearchReady] = Field(default_factory=dict)
    generation: int = 0
    losses: dict[str, float] = Field(default_factory=dict)
    consensus: str | None = None
    derived: dict[str, str] = Field(default_factory=dict)

    def begin(self, sites: Mapping[str, SiteReady], of_cells: bool) -> None:
        """These take part, also those that are away when the server goes on later.

        Args:
            sites: what they said when the job began.
            of_cells: whether cells are searched, or widths.
        """
        told = {site: each.search for site, each in sorted(sites.items()) if each.search}
        self.ready = {site: each for site, each in told.items() if (each.fit if of_cells else each.widest)}


def holding(held: Mapping[str, Iterable[str]], exchanged: Names, min_holders: int) -> tuple[Held, Held]:
    """By site, the names of the values that travel, and of those that stay since too few sites hold them.

    Args:
        held: by site, names of its network's values.
        exchanged: names of all values that may travel at all.
        min_holders: a value travels if so many sites hold it.
    """
    may = set(exchanged)
    names = {site: tuple(name for name in each if name in may) for site, each in held.items()}
    holders = Counter(name for each in names.values() for name in each)
    least = min(min_holders, len(names))
    travel = {site: tuple(name for name in each if holders[name] >= least) for site, each in names.items()}
    stay = {site: tuple(name for name in each if holders[name] < least) for site, each in names.items()}
    return travel, stay


def take_widths(state: SearchState, result: SearchResult) -> None:
    """Each site's network is the widest that its memory holds; the narrowest of them is what all have in common."""
    for site, ready in state.ready.items():
        assert ready.widest is not None  # without it a site takes no part in a search of widths
        width = Width(ready.widest.eighths)
        state.derived[site] = width.to_json()
        entry = result.sites[site]
        entry.architecture, entry.parameters = width.to_json(), ready.widest.parameters
        entry.predicted_bytes = entry.measured_bytes = ready.widest.measured_bytes
        entry.saving = ready.widest.saving
    state.consensus = result.consensus = min(
        (read_width(text) for text in state.derived.values()), key=lambda width: width.eighths
    ).to_json()


def search_site(ready: SearchReady) -> SearchSite:
    """A site's entry in the result before it has a network."""
    return SearchSite(budget_bytes=ready.budget_bytes, main_bytes=ready.main_bytes)
