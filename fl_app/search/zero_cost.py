"""Scores of untrained networks: to drop the worst candidates, not to rank the good ones.

In the project's own trial (26 networks) no such score correlated with trained Dice by more than 0.2, about as
little as the number of weights; the loss with inherited weights did by 0.35.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def synflow(network: nn.Module, patch: tuple[int, int, int]) -> float:
    """SynFlow (Tanaka et al., NeurIPS 2020): log of the sum of |w| * dR/d|w|, on an image of ones.

    R is the sum of the outputs of the network with each weight made positive and without its instance normalisation,
    which would undo that.

    Args:
        network: maps (1, 1, x, y, z) to logits; its values and gradients are as before afterwards.
        patch: voxels, x y z.
    """
    work = copy.deepcopy(network).double().eval()
    for parameter in work.parameters():
        parameter.data.abs_()
    for parent in list(work.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm3d):
                setattr(parent, name, nn.Identity())
    output = work(torch.ones(1, 1, *patch, dtype=torch.float64, device=next(work.parameters()).device))
    gradients = torch.autograd.grad(output.sum(), list(work.parameters()), allow_unused=True)
    pairs = zip(work.parameters(), gradients, strict=True)
    total = sum(float((parameter.detach() * gradient).sum()) for parameter, gradient in pairs if gradient is not None)
    return float(torch.tensor(total, dtype=torch.float64).log())


@torch.no_grad()
def naswot(network: nn.Module, images: torch.Tensor) -> float:
    """NASWOT (Mellor et al., ICML 2021): log |det K|, K_ij = units that are on or off for images i and j alike.

    A network that tells images apart before training has a K close to a diagonal matrix. Each ReLU's K is divided
    by its number of units, so that networks of different size compare.

    Args:
        network: maps (batch, 1, x, y, z) to logits.
        images: (batch, 1, x, y, z), two different ones or more.
    """
    kernels: list[torch.Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        on = (output.flatten(1) > 0).double()
        kernels.append((on @ on.T + (1 - on) @ (1 - on).T) / on.shape[1])

    work = copy.deepcopy(network).eval()
    for module in work.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(note)
    work(images.to(next(work.parameters()).device))
    if not kernels:
        raise ValueError("the network has no ReLU")
    return float(torch.slogdet(torch.stack(kernels).mean(0))[1])
