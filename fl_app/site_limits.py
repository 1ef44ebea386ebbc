"""Whether a site takes part in a job: the stricter of the two decides."""

from __future__ import annotations

import math

from fl_app.config import Job
from fl_app.site import SiteSettings


def refusals(job: Job, settings: SiteSettings, training_cases: int | None = None) -> list[str]:
    """Why the site's own limits forbid a job: a sentence for each, with the key in ``site.yaml``; empty: they do not.

    Args:
        job: what is asked of the site.
        settings: what the site allows.
        training_cases: how many cases the site would train on; none: not known yet.
    """
    limits, training, federation = settings.limits, job.training, job.federation
    voxels = math.prod(job.training_patch) * training.batch_size
    asked = (
        ("max_rounds", limits.max_rounds, "federation.rounds", federation.rounds),
        ("max_steps_per_round", limits.max_steps_per_round, "training.steps_per_round", training.steps_per_round),
        ("max_voxels_per_step", limits.max_voxels_per_step, "data.patch_voxels times training.batch_size", voxels),
    )
    found = [
        f"limits.{key}: the job has {what} {value}, this site allows {most}"
        for key, most, what, value in asked
        if most is not None and value > most
    ]
    least = limits.min_training_cases
    if least is not None and training_cases is not None and training_cases < least:
        found.append(f"limits.min_training_cases: the site would train on {training_cases} cases, it asks for {least}")
    if limits.networks is not None and job.network.name not in limits.networks:
        allowed = ", ".join(limits.networks) or "none"
        found.append(f"limits.networks: the job has network.name {job.network.name}, this site allows {allowed}")
    if not limits.share_normalisation and federation.normalisation != "local":
        found.append(
            f"limits.share_normalisation: the job has federation.normalisation {federation.normalisation}, this site "
            "needs local"
        )
    return found
