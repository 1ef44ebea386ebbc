"""Choose where to compute."""

from __future__ import annotations

import re
import resource

import psutil
import torch

from fl_app.errors import ConfigError


def choose_device(wanted: str) -> torch.device:
    """The device for auto, cpu, cuda or cuda:N; auto is the first GPU where there is one.

    Raises:
        ConfigError: it is no such name, or this machine has no such GPU.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, _, index = wanted.partition(":")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", wanted):
        raise ConfigError(f"device: {wanted!r} - one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if name == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device: {wanted!r} - this machine has {found} usable GPU(s); use cpu or auto")
    return torch.device(wanted)


def choose_devices(wanted: str, processes: int) -> list[torch.device]:
    """Where each of some processes computes: one GPU after the other from the named one on, or the CPU.

    Raises:
        ConfigError: it is no such name, or there are fewer GPUs.
    """
    first = choose_device(wanted)
    if processes == 1 or first.type == "cpu":
        return [first] * processes
    start, found = first.index or 0, torch.cuda.device_count()
    if start + processes > found:
        raise ConfigError(
            f"processes: {processes} - each process needs a GPU of its own, and from device {wanted!r} on this machine "
            f"has {found - start}: set processes: {found - start}"
        )
    return [torch.device("cuda", start + number) for number in range(processes)]


def free_memory(device: torch.device) -> int:
    """Bytes of memory that a process could still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def memory_for_cases(device: torch.device) -> int:
    """Bytes that the prepared cases may take on a device, beside training: a quarter of what is free."""
    return free_memory(device) // 4


def memory_budget(gibibytes: float | None, device: torch.device) -> int:
    """Bytes that training may take: what the site says, else what is free."""
    return int(gibibytes * 2**30) if gibibytes else free_memory(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of the GPU, as torch counts them, or else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe_device() -> str:
    """What ``device: auto`` means on this machine: cpu, or the GPU's name."""
    device = choose_device("auto")
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"
