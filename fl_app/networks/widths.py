"""One network in several widths, each inside the next, so that sites of unequal memory train it together.

As HeteroFL does it (Diao et al., ICLR 2021): a narrower network holds the first channels of each layer of a wider one.
A weight's values travel in parts, ``NAME.width_K``: what is in the network of K eighths and in none narrower. So values
of the same name belong together at all sites, and each is averaged over the sites that hold it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
from monai.networks.layers.simplelayers import SkipConnection
from torch import nn

from fl_app.config import Job
from fl_app.errors import ConfigError
from fl_app.networks.registry import build_network

WIDTHS = range(1, 9)
_VERSION = 1
_PART = ".width_"


@dataclass(frozen=True)
class Width:
    """A network of some eighths of the job's own channels.

    Attributes:
        eighths: 1 to 8.
    """

    eighths: int

    def is_subset(self, other: Width) -> bool:
        """Whether ``other`` holds every weight of this one."""
        return self.eighths <= other.eighths

    def to_json(self) -> str:
        """The width as one line of JSON."""
        return json.dumps({"version": _VERSION, "eighths": self.eighths}, separators=(",", ":"))


def read_width(text: str) -> Width:
    """A width from JSON, as `Width.to_json` writes it; it may come from anywhere.

    Raises:
        ConfigError: it is no such JSON.
    """
    known = {Width(eighths).to_json(): Width(eighths) for eighths in WIDTHS}
    try:
        return known[json.dumps(json.loads(text), separators=(",", ":"))]
    except (ValueError, KeyError, RecursionError):
        raise ConfigError(
            "width: this is no width of a network - use one that this version of fedspleen wrote"
        ) from None


def build_width(job: Job, width: Width) -> nn.Module:
    """The job's network with a share of its channels, whose `state_dict` has the parts that all widths share.

    The initial weights are the first channels of those of the job's own network.
    """
    network, sizes = _plain(job, width.eighths), _sizes(job)
    for name, layer in network.named_modules():
        parts = {
            weight: axes
            for weight, axes in sizes.get(name, {}).items()
            if any(len(set(size)) > 1 for size in map(_totals, axes))
        }
        if parts:
            in_parts = _InParts(width.eighths, parts)
            layer.register_state_dict_post_hook(partial(in_parts.take_apart))  # torch marks it, which methods refuse
            layer.register_load_state_dict_pre_hook(in_parts.put_together)
    network.architecture = width  # type: ignore[assignment]  # as networks of cells have theirs
    if width.eighths < WIDTHS[-1]:
        network.load_state_dict(build_width(job, Width(WIDTHS[-1])).state_dict(), strict=False)
    return network


def parts_of(job: Job, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The values of the job's own network, taken apart as all widths share them."""
    network = build_width(job, Width(WIDTHS[-1]))
    with torch.no_grad():
        for name, value in chain(network.named_parameters(), network.named_buffers()):
            value.copy_(values[name])
    return dict(network.state_dict())


def whole_names(names: Sequence[str]) -> frozenset[str]:
    """The names of the weights that these values are, or are parts of."""
    return frozenset(name.partition(_PART)[0] for name in names)


Segments = tuple[tuple[int, ...], ...]  # for each source of channels along an axis, how many it has in each width


def _totals(segments: Segments) -> tuple[int, ...]:
    return tuple(map(sum, zip(*segments, strict=True)))


class _InParts:
    """Takes a layer's weights apart by the width that they first appear in, and puts them together again.

    Args:
        eighths: the layer's own width.
        weights: for each weight the segments of its first axes; further axes are the same in all widths.
    """

    def __init__(self, eighths: int, weights: dict[str, tuple[Segments, ...]]) -> None:
        # for each weight and each width that adds to it, where it does along the first axes
        self._masks: dict[str, dict[int, torch.Tensor]] = {}
        for weight, axes in weights.items():
            first_in = _narrowest(axes[0], eighths)
            if len(axes) > 1:
                first_in = torch.maximum(first_in[:, None], _narrowest(axes[1], eighths)[None, :])
            self._masks[weight] = {int(width): first_in == width for width in first_in.unique()}

    def take_apart(self, layer: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        """Replace whole weights by their parts; a hook of `torch.nn.Module.state_dict`."""
        for weight, masks in self._masks.items():
            whole = state.pop(prefix + weight)
            state |= {f"{prefix}{weight}{_PART}{width}": whole[mask.to(whole.device)] for width, mask in masks.items()}

    def put_together(
        self,
        layer: nn.Module,
        state: dict[str, Any],
        prefix: str,
        metadata: object,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Replace the parts that there are by whole weights; a hook of `torch.nn.Module.load_state_dict`."""
        for weight, masks in self._masks.items():
            names = {width: f"{prefix}{weight}{_PART}{width}" for width in masks}
            given = {width: state.pop(name) for width, name in names.items() if name in state}
            missing += [name for width, name in names.items() if width not in given and strict]
            whole = getattr(layer, weight).detach().clone()
            for width, part in given.items():
                mask = masks[width].to(whole.device)
                if part.shape != whole[mask].shape:
                    errors.append(f"size mismatch for {names[width]}: {tuple(part.shape)}")
                else:
                    whole[mask] = part.to(whole)
            state[prefix + weight] = whole


def _narrowest(segments: Segments, eighths: int) -> torch.Tensor:
    """For each position along an axis of the network of some eighths, the narrowest width that has it."""
    places = []
    for sizes in segments:
        for place in range(sizes[eighths - 1]):
            places.append(next(width for width in WIDTHS if sizes[width - 1] > place))
    return torch.tensor(places)


def _plain(job: Job, eighths: int) -> nn.Module:
    channels = job.network.channels
    assert channels is not None  # the job's settings allow widths for networks that have them
    narrowed: list[int] = []
    for before, each in zip((0, *channels), channels, strict=False):
        # a unit whose channels change has a convolution more than one whose channels do not
        least = 0 if not narrowed else narrowed[-1] + (each > before)
        narrowed.append(max(1, least, round(each * eighths / WIDTHS[-1])))
    return build_network(
        job.model_copy(update={"network": job.network.model_copy(update={"channels": tuple(narrowed)})})
    )


@lru_cache(maxsize=4)
def _sizes_of(text: str) -> dict[str, dict[str, tuple[Segments, ...]]]:
    job = Job.model_validate_json(text)
    with torch.device("meta"):
        networks = [_plain(job, eighths) for eighths in WIDTHS]
    states = [network.state_dict() for network in networks]
    joined = [_joined_inputs(network) for network in networks]
    layers: dict[str, dict[str, tuple[Segments, ...]]] = {}
    for name, layer in networks[-1].named_modules():
        for weight in [] if list(layer.children()) else layer.state_dict():
            same = [state[f"{name}.{weight}"] for state in states]
            # a transposed convolution has its input's channels first
            inputs = (0 if isinstance(layer, nn.ConvTranspose3d) else 1) if weight == "weight" else -1
            axes = []
            for axis in range(min(2, same[0].dim())):
                totals = [each.shape[axis] for each in same]
                skips = [each.get(name, 0) for each in joined] if axis == inputs else [0] * len(WIDTHS)
                rest = tuple(total - skip for total, skip in zip(totals, skips, strict=True))
                axes.append((tuple(skips), rest))
            layers.setdefault(name, {})[weight] = tuple(axes)
    return layers


def _sizes(job: Job) -> dict[str, dict[str, tuple[Segments, ...]]]:
    """For each layer and weight, how many channels each source along its first axes has in each width."""
    return _sizes_of(Job(data=job.data, network=job.network).model_dump_json())


def _joined_inputs(network: nn.Module) -> dict[str, int]:
    """For each layer that reads a skip connection beside what came up, how many of its channels are the skip's."""
    found = {}
    for name, module in network.named_modules():
        children = list(module.named_children())
        for (_, down), (_, skip), (after, up) in zip(children, children[1:], children[2:], strict=False):
            if isinstance(skip, SkipConnection):
                first = next(each for each in down.modules() if isinstance(each, nn.Conv3d))
                place = next(
                    inner for inner, each in up.named_modules() if isinstance(each, nn.Conv3d | nn.ConvTranspose3d)
                )
                found[".".join(filter(None, [name, after, place]))] = first.out_channels
    return found
