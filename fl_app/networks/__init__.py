"""The segmentation networks that a job can name."""

from fl_app.networks.proposal import PooledStatistics, Proposal, propose_plan
from fl_app.networks.registry import build_network, exchanged_names

__all__ = ["PooledStatistics", "Proposal", "build_network", "exchanged_names", "propose_plan"]
