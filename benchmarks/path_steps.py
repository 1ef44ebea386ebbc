"""A training step of the default search space's networks at 64^3, beside the default U-Net's.

The smallest, the median (by memory, of 15 random ones) and the largest network. One thread; steps in turn, medians.

    .venv/bin/python -m benchmarks.path_steps
"""

import statistics
import time

import numpy as np
import torch
from torch import nn

from benchmarks.memory_model import CPU, MIB, SPACE, job
from fl_app.networks.registry import build_network
from fl_app.networks.space.sampling import NetworkSampler
from fl_app.networks.space.supernet import DiscreteNetwork, supernet_size
from fl_app.search.memory import memory_model
from fl_app.training.adapting import adapt_layers
from fl_app.training.fitting import training_memory
from fl_app.training.objectives import build_loss, build_optimizer
from fl_app.training.precision import MixedPrecision, choose_precision

REPEATS = 5


def step_seconds(network: nn.Module, precision: MixedPrecision, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Processor time of one optimiser step."""
    chosen = job(precision="auto")
    optimizer, loss = build_optimizer(chosen.training, network), build_loss(chosen.training.loss)
    started = time.process_time()
    with precision.autocast():
        logits = network(images)
    optimizer.zero_grad(set_to_none=True)
    precision.step(loss(logits.float(), labels), network, optimizer, chosen.training.gradient_clip)
    return time.process_time() - started


def main() -> None:
    """Print parameters, training memory and step time of each, and ratios to the U-Net's."""
    torch.set_num_threads(1)
    chosen = job(precision="auto")
    precision = MixedPrecision(choose_precision("auto", CPU), CPU)
    memory = memory_model(chosen, SPACE, CPU)
    sampler, chance = NetworkSampler(memory), np.random.default_rng(0)
    median = sorted((sampler.draw(chance) for _ in range(15)), key=memory.total)[7]
    plain = build_network(chosen).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    networks = {"default U-Net": plain}
    for name, network in (("smallest", sampler.smallest), ("median", median), ("largest", sampler.largest)):
        networks[f"{name} network"] = DiscreteNetwork(SPACE, network, 1)
    images, labels = torch.rand(1, 1, 64, 64, 64), torch.randint(0, 2, (1, 1, 64, 64, 64), dtype=torch.uint8)
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        step_seconds(adapt_layers(network), precision, images, labels)
    for _ in range(REPEATS):
        for name, network in networks.items():
            taken[name].append(step_seconds(network, precision, images, labels))
    bytes_of = {name: training_memory(network, chosen, CPU) for name, network in networks.items()}
    print(f"supernet of {SPACE.name}: {supernet_size(SPACE, 1):,} parameters; {precision.name}")
    for name, network in networks.items():
        parameters = sum(value.numel() for value in network.parameters())
        seconds = statistics.median(taken[name])
        print(
            f"{name:17} {parameters:9,} parameters  {bytes_of[name] / MIB:6.1f} MiB "
            f"({bytes_of[name] / bytes_of['default U-Net']:.2f} x)  {1000 * seconds:6.0f} ms "
            f"({seconds / statistics.median(taken['default U-Net']):.2f} x)"
        )


if __name__ == "__main__":
    main()
