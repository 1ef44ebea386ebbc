"""How the sites' work becomes one model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from fl_app.config.base import Settings, mistake


class FederationSettings(Settings):
    """How the sites' work becomes one model."""

    algorithm: Literal["fedavg", "fedprox"] = Field(
        "fedavg", description="fedprox adds proximal_mu / 2 * |w - w_global|^2 to each site's loss"
    )
    proximal_mu: Annotated[float, Field(ge=0)] = Field(0.01, description="fedprox only: strength of the pull")
    rounds: Annotated[int, Field(ge=0)] = Field(
        20, description="exchanges between the sites and the server; 0: only what a search finds is trained"
    )
    weight_by: Literal["cases", "steps", "equal"] = Field(
        "cases",
        description="a site's weight in the average: its training cases, its steps, or the same for all",
    )
    normalisation: Literal["average", "local"] = Field(
        "average",
        description="average: normalisation layers, running statistics included, are averaged like the rest; "
        "local: they stay at each site (FedBN)",
    )
    transfer_bits: Literal[32, 8, 3] = Field(
        8,
        description="bits of each value on its way, both ways; 8, 3: differences, and what is rounded off goes with "
        "the next ones (docs/architecture.md); 32: whole models to the sites, differences back, nothing rounded",
    )
    min_sites: Annotated[int, Field(ge=0)] = Field(
        0, description="quorum: a round with fewer good updates ends the job; 0: every site must answer"
    )
    aggregator: Literal["mean", "norm_clipping", "trimmed_mean", "median", "multi_krum", "krum"] = Field(
        "mean",
        description="mean: weighted by weight_by; the others withstand tolerated_sites bad sites (docs/reliability.md)",
    )
    tolerated_sites: Annotated[int, Field(ge=0)] = Field(
        1, description="how many bad sites a robust aggregator withstands; it needs at least twice as many good ones"
    )
    norm_factor: Annotated[float, Field(ge=0)] = Field(
        10.0, description="an update so many times as long as the sites' usual one is left out; 0: none is"
    )
    round_time_limit_s: Annotated[int, Field(ge=1)] = Field(
        3600, description="longest time for a round in seconds; then the quorum decides"
    )
    grace_s: Annotated[int, Field(ge=0)] = Field(
        30, description="once the quorum has answered, how many seconds the round waits for the others"
    )
    best_metric: str = Field(
        "val_dice", description="what selects the best model, averaged over the sites by validation cases"
    )

    @field_validator("best_metric")
    @classmethod
    def _metric_is_reported(cls, metric: str, info: ValidationInfo) -> str:
        reported = (info.context or {}).get("reported_metrics", ())
        if reported and metric not in reported:
            raise mistake("a metric that the trainer reports: " + ", ".join(reported), reported)
        return metric
