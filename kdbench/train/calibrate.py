"""What one image costs on this device: a few real steps of each architecture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
import torch.nn.functional as F

from kdbench.models import build
from kdbench.spec import Cost, DataInfo, Recipe
from kdbench.train.environment import on_device
from kdbench.train.evaluate import autocast

REPETITIONS = 3


def calibrate(
    archs: Iterable[str], data: DataInfo, recipe: Recipe, device: torch.device, precision: str
) -> dict[str, Cost]:
    """Medians of a few steps after one that is not counted, on random images."""
    images = torch.rand(recipe.batch_size, 3, data.size, data.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(recipe.batch_size, device=device) % data.classes
    costs = {}
    for arch in dict.fromkeys(archs):
        with torch.random.fork_rng(devices=[]):
            network = on_device(build(arch, data.classes, data.size), device)
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=recipe.momentum, fused=True)

        def train(network: torch.nn.Module = network, optimiser: torch.optim.Optimizer = optimiser) -> None:
            with autocast(device, precision):
                logits = network(images).logits
            F.cross_entropy(logits.float(), labels).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        def forward(network: torch.nn.Module = network) -> None:
            with torch.no_grad(), autocast(device, precision):
                network(images)

        network.train()
        spent = _median_seconds(train, device)
        network.eval()
        costs[arch] = Cost(spent / recipe.batch_size, _median_seconds(forward, device) / recipe.batch_size)
    return costs


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])
