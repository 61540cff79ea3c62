"""The part of a network that its maps come from."""

from __future__ import annotations

import torch
from torch import nn

from kdbench.models.output import Output


def backbone_modules(network: nn.Module, size: int, device: torch.device) -> list[nn.Module]:
    """The modules whose own parameters the last map depends on: all but the classifier and what directly precedes it.

    RepDistiller trains the same in its first stages; in wide residual networks the last batch norm is not among them.
    """
    network.eval()
    images = torch.zeros(1, 3, size, size, device=device).to(memory_format=torch.channels_last)
    output: Output = network(images)
    named = dict(network.named_parameters())
    gradients = torch.autograd.grad(output.feature_maps[-1].sum(), list(named.values()), allow_unused=True)
    reached = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
    return [
        module
        for path, module in network.named_modules()
        if any(f"{path}.{name}".lstrip(".") in reached for name, _ in module.named_parameters(recurse=False))
    ]
