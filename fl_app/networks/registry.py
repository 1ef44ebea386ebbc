"""Build the network that a job names, and say which of its values the sites exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.nets.ahnet import AHNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vnet import VNet
from torch import nn

from fl_app.config import Job, plan_unet
from fl_app.errors import ConfigError
from fl_app.networks.dints import build_dints

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


def build_network(job: Job) -> nn.Module:
    """The job's network: it maps (batch, 1, x, y, z) to logits (batch, 1 + organs, x, y, z); channel 0 is background.

    The initial weights depend on the job's seed alone; the caller's random stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return _BUILDERS[job.network.name](job, 1 + len(job.data.labels))


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


def _unet(job: Job, classes: int) -> nn.Module:
    channels = job.network.channels
    assert channels is not None and job.network.residual_units is not None  # the settings give every U-Net its own
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=job.network.residual_units,
        norm=_NORMALISATION[job.network.normalisation],
        dropout=job.network.dropout,
    )


def _segresnet(job: Job, classes: int) -> nn.Module:
    assert job.network.channels is not None
    return SegResNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        init_filters=job.network.channels[0],
        norm=_NORMALISATION[job.network.normalisation],
        dropout_prob=job.network.dropout or None,
    )


def _dynunet(job: Job, classes: int) -> nn.Module:
    """nnU-Net's plain U-Net (Isensee et al., Nature Methods 2021): medium has its width."""
    plan = plan_unet(job.data.patch_voxels, job.data.spacing_mm)
    width = {"tiny": 8, "small": 16, "medium": 32, "large": 64}[str(job.network.size)]
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=[min(width * 2**level, width * 10) for level in range(len(plan.strides))],
        norm_name=_NORMALISATION[job.network.normalisation],
    )
    # MONAI holds these layers a second time in skip_layers, which is what runs: each value travels under one name
    del network.input_block, network.downsamples, network.bottleneck, network.upsamples
    return network


def _vnet(job: Job, classes: int) -> nn.Module:
    assert job.network.dropout is not None
    network = VNet(spatial_dims=3, in_channels=1, out_channels=classes)
    for module in network.modules():
        if isinstance(module, nn.Dropout3d):
            module.p = job.network.dropout  # MONAI's argument leaves two of the layers at 0.5
    return network


def _ahnet(job: Job, classes: int) -> nn.Module:
    """With as many residual blocks as ResNet-26, 50 or 101; four pyramid levels would need patches of 128 voxels."""
    blocks = {"small": (2, 2, 2, 2), "medium": (3, 4, 6, 3), "large": (3, 4, 23, 3)}[str(job.network.size)]
    return AHNet(blocks, spatial_dims=3, in_channels=1, out_channels=classes, psp_block_num=2)


def _unetr(job: Job, classes: int) -> nn.Module:
    """With the vision transformer Ti, S or B (the paper's); all have 12 layers and 64 features a head."""
    features, hidden = {"small": (8, 192), "medium": (16, 384), "large": (16, 768)}[str(job.network.size)]
    return UNETR(
        in_channels=1,
        out_channels=classes,
        img_size=job.data.patch_voxels,
        feature_size=features,
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_heads=hidden // 64,
        norm_name=_NORMALISATION[job.network.normalisation],
        dropout_rate=job.network.dropout,
    )


def _swinunetr(job: Job, classes: int) -> nn.Module:
    return SwinUNETR(
        in_channels=1,
        out_channels=classes,
        feature_size={"small": 12, "medium": 24, "large": 48}[str(job.network.size)],
        norm_name=_NORMALISATION[job.network.normalisation],
        drop_rate=job.network.dropout,
    )


def _dints(job: Job, classes: int) -> nn.Module:
    return build_dints(str(job.network.size), classes, _NORMALISATION[job.network.normalisation])


_BUILDERS: dict[str, Callable[[Job, int], nn.Module]] = {
    "unet": _unet,
    "segresnet": _segresnet,
    "dynunet": _dynunet,
    "vnet": _vnet,
    "ahnet": _ahnet,
    "unetr": _unetr,
    "swinunetr": _swinunetr,
    "dints": _dints,
}
