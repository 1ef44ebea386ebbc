"""Train a part of a network's weights: what is frozen needs no gradient and no optimiser state.

Sites that freeze some layers serve a federation better than sites that train a narrower network (CoCoFL, Pfeiffer et
al., TMLR 2023): all compute the same function.
"""

from __future__ import annotations

import torch
from torch import nn


def freeze(network: nn.Module, share: float) -> nn.Module:
    """Have a network's largest weights not trained, in place.

    Args:
        network: the network; the order of its weights' sizes, and of their names, decides.
        share: of all its values that are frozen at most; normalisation and biases always train.
    """
    weights = sorted(network.named_parameters(), key=lambda named: (-named[1].numel(), named[0]))
    left = share * sum(each.numel() for _, each in weights)
    for _, each in weights:
        if each.dim() > 1 and each.numel() <= left:
            each.requires_grad_(False)
            left -= each.numel()
    return network


def frozen_names(network: nn.Module) -> frozenset[str]:
    """The names of the weights that are not trained."""
    return frozenset(name for name, each in network.named_parameters() if not each.requires_grad)


def lower_frozen(network: nn.Module, kind: torch.dtype) -> None:
    """Hold what is not trained in the type that it is computed in, in place: the same results, half of the bytes."""
    for each in network.parameters():
        if not each.requires_grad:
            each.data = each.data.to(kind)
