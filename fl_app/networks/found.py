"""What a search finds for a site: one network of the space of cells, or one width of the job's own network."""

from __future__ import annotations

from torch import nn

from fl_app.config import Job
from fl_app.networks.space.architecture import Architecture, read_architecture
from fl_app.networks.space.supernet import DiscreteNetwork, weight_names
from fl_app.networks.widths import Width, build_width, read_width

Found = Architecture | Width


def read_found(text: str, job: Job) -> Found:
    """A network that a job's search has found, from JSON; it may come from anywhere.

    Raises:
        ConfigError: it is no network that the job could find.
    """
    return read_architecture(text, job.search.space) if job.search.of_cells else read_width(text)


def build_found(job: Job, found: Found) -> nn.Module:
    """The network as a module; values that two sites share bear the same name in both."""
    if isinstance(found, Width):
        return build_width(job, found)
    return DiscreteNetwork(job.search.space, found, len(job.data.labels), job.seed)


def is_part(smaller: Found, larger: Found) -> bool:
    """Whether the larger network holds every weight of the smaller one."""
    if isinstance(smaller, Width):
        return isinstance(larger, Width) and smaller.is_subset(larger)
    return isinstance(larger, Architecture) and smaller.is_subset(larger)


def value_names(job: Job, found: Found) -> tuple[str, ...]:
    """The names of its values, sorted."""
    if isinstance(found, Width):
        return tuple(sorted(build_width(job, found).state_dict()))
    return weight_names(job.search.space, found)
