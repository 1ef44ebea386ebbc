"""The segmentation networks that a job can name."""

from fl_app.networks.registry import build_network, exchanged_names

__all__ = ["build_network", "exchanged_names"]
