"""Build a network from its settings, and say which of its values the sites exchange."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import nn

from fl_app.config import NetworkSettings
from fl_app.errors import ConfigError

# group normalisation with one group: MONAI's U-Net also normalises its output layer, whose channels are few
_NORMALISATION: dict[str, tuple[str, dict[str, Any]]] = {
    "instance": ("instance", {"affine": True}),
    "batch": ("batch", {}),
    "group": ("group", {"num_groups": 1}),
}
_NORMALISATION_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def build_network(settings: NetworkSettings, organs: int, seed: int = 0) -> nn.Module:
    """A network that maps (batch, 1, x, y, z) to logits (batch, 1 + organs, x, y, z).

    Args:
        settings: the job's network section.
        organs: how many organs; channel 0 is background.
        seed: of the initial weights; the caller's random stream is left as it was.
    """
    normalisation = _NORMALISATION[settings.normalisation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.name == "unet":
            return UNet(
                spatial_dims=3,
                in_channels=1,
                out_channels=1 + organs,
                channels=settings.channels,
                strides=(2,) * settings.halvings,
                num_res_units=settings.residual_units,
                norm=normalisation,
                dropout=settings.dropout,
            )
        return SegResNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1 + organs,
            init_filters=settings.channels[0],
            norm=normalisation,
            dropout_prob=settings.dropout or None,
        )


def exchanged_names(network: nn.Module, normalisation: str) -> tuple[str, ...]:
    """Names of the values that travel between the sites and the server, sorted.

    Weights and running statistics travel; counters (whole numbers) do not, since an average of them means
    nothing. With ``normalisation="local"`` (FedBN, Li et al., ICLR 2021) the normalisation layers' weights and
    running statistics stay at the site.

    Raises:
        ConfigError: local normalisation is asked for, but the network has nothing to keep.
    """
    names = {name for name, value in network.state_dict().items() if value.is_floating_point()}
    if normalisation == "local":
        local = {
            f"{prefix}.{name}"
            for prefix, layer in network.named_modules()
            if isinstance(layer, _NORMALISATION_LAYERS)
            for name in layer.state_dict()
        }
        if not local:
            raise ConfigError(
                "federation.normalisation: local - this network's normalisation layers have no weights; use average"
            )
        names -= local
    return tuple(sorted(names))
