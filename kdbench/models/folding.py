"""A frozen network with its batch norms folded into the convolutions before them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from kdbench.models.output import Output


class Folded(nn.Module):
    """Two traces of one network: without and with pre-activation maps."""

    def __init__(self, plain: nn.Module, pre_activations: nn.Module) -> None:
        super().__init__()
        self.plain, self.pre_activations = plain, pre_activations

    def forward(self, images: Tensor, pre_activations: bool = False) -> Output:
        output: Output = (self.pre_activations if pre_activations else self.plain)(images, pre_activations)
        return output


def fold(network: nn.Module) -> nn.Module:
    """A copy with the same outputs, for evaluation only.

    A batch norm is folded if nothing else reads the convolution before it. Networks that torch.fx cannot trace are
    returned unchanged: timm's, and those whose forward pass depends on the image size.
    """
    if "forward" in vars(network):  # torch.fx would trace the class's `forward` instead
        return network
    try:
        traces = [_fold(network, pre_activations) for pre_activations in (False, True)]
    except Exception:  # tracing runs arbitrary code, which may raise anything
        return network
    return Folded(*traces).eval().requires_grad_(False)


def _fold(network: nn.Module, pre_activations: bool) -> nn.Module:
    copy = deepcopy(network).eval()
    tracer = fx.Tracer()
    graph = tracer.trace(copy, concrete_args={"pre_activations": pre_activations})
    folded: Any = fuse(fx.GraphModule(tracer.root, graph), inplace=True, no_trace=True)
    return folded  # type: ignore[no-any-return]
