"""How the sites search a network together, each within its own memory budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fl_app.config.base import Fraction, Positive, Settings, Share, mistake
from fl_app.config.space import SearchSpace


class SearchSettings(Settings):
    """An architecture search that comes before the federated training of what it finds."""

    strategy: Literal["none", "width", "sampling", "gradient", "random"] = Field(
        "none",
        description="none: no search, all train the network above; width: each site trains it as wide as its memory "
        "allows (unet only); sampling: train random paths of a supernet, then choose by the sites' validation; "
        "gradient: train all networks of the space at once, and each site what it likes best of them (DiNTS), which "
        "takes the memory of the whole supernet; random: as sampling, but choose at random, the control",
    )
    space: SearchSpace = Field(default_factory=SearchSpace)
    mode: Literal["consensus", "nested", "free"] = Field(
        "nested",
        description="consensus: one network for all, in the smallest budget; nested: the consensus plus what each "
        "site's budget allows; free: each site its own",
    )
    supernet_rounds: Positive = Field(10, description="exchanges that train the supernet's paths")
    supernet_steps: Positive = Field(50, description="optimiser steps of each site in such an exchange")
    paths_per_round: Positive = Field(4, description="networks that a site samples in such an exchange")
    upload_share: Share = Field(
        0.5,
        description="largest part of the supernet that a site trains, and so sends, in an exchange; gradient: all",
    )
    warm_up_share: Fraction = Field(
        0.5, description="gradient: part of the supernet's exchanges before the sites' likings learn, too"
    )
    generations: Annotated[int, Field(ge=0)] = Field(3, description="how often the sites score candidates")
    candidates: Positive = Field(8, description="networks that are scored in a generation")
    rounds: Positive = Field(10, description="exchanges that train the networks that were found")
    filter: Literal["none", "synflow", "naswot"] = Field(
        "none",
        description="drops the worse half of twice as many candidates for a site's own network by a score of untrained "
        "networks; they say little (see fl_app/search/zero_cost.py)",
    )
    min_holders: Positive = Field(
        2,
        description="a parameter travels if at least so many sites' networks have it, and changes in a round if as "
        "many have trained it; the mean of one site's update would be that update, for all to see",
    )
    least_share: Fraction = Field(0.3, description="smallest sampled network, as a share of the site's budget")
    consensus_share: Fraction = Field(
        1 / 3,
        description="part of a round's steps that a site trains what its network has in common with all others' alone, "
        "so that it serves them too",
    )
    own_share: Fraction = Field(
        0.75, description="what a site's own network takes of its budget at least, where some network does"
    )

    @model_validator(mode="after")
    def _proposals_are_scored(self) -> SearchSettings:
        if self.strategy == "gradient" and not self.generations:
            raise mistake("generations of 1 or more with strategy gradient: what the sites propose has to be scored")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is a search."""
        return self.strategy != "none"

    @property
    def of_cells(self) -> bool:
        """Whether the search looks through the space of cells, and not for widths of the job's own network."""
        return self.strategy not in ("none", "width")
