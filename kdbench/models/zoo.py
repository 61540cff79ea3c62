"""The architectures by name: what there is, what it gives, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import Tensor, nn

from kdbench.models import mobilenetv2, resnet, resnet_bottleneck, shufflenetv1, shufflenetv2, vgg, wrn
from kdbench.models.blocks import Architectures
from kdbench.models.output import Output
from kdbench.spec import ModelInfo, UserError, unknown

MapShape = tuple[int, int, int]  # K, H, W


@dataclass(frozen=True)
class FeatureShapes:
    """The shapes of an `Output`, batch apart."""

    maps: tuple[MapShape, ...]  # the stem's, then one a stage
    preact_maps: bool  # whether the model can give them; their shapes are those of `maps`
    embedding: int


@dataclass(frozen=True)
class Profile:
    """The size of a model and its arithmetic for one image."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers


@dataclass(frozen=True)
class _Entry:
    info: ModelInfo
    construct: Callable[[int, int], nn.Module]  # from the number of classes and the pixels a side


_ENTRIES: dict[str, _Entry] = {}


def _add(family: str, architectures: Architectures, *, light: bool = False, smallest: int = 1) -> None:
    for name, construct in architectures.items():
        if name in _ENTRIES:
            raise ValueError(f"the architecture {name!r} is taken by {_ENTRIES[name].info.family}")
        _ENTRIES[name] = _Entry(ModelInfo(name, family, light, smallest), _for_any_size(construct))


def _for_any_size(construct: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    """These networks end in global pooling, so their layers do not depend on the size of the images."""
    return lambda classes, _size: construct(classes)


_add("resnet", resnet.ARCHITECTURES)
_add("resnet-bottleneck", resnet_bottleneck.ARCHITECTURES)
_add("wrn", wrn.ARCHITECTURES)
_add("vgg", vgg.ARCHITECTURES, smallest=vgg.SMALLEST)
_add("mobilenetv2", mobilenetv2.ARCHITECTURES, light=True)
_add("shufflenetv1", shufflenetv1.ARCHITECTURES, light=True)
_add("shufflenetv2", shufflenetv2.ARCHITECTURES, light=True)


def _find(name: str) -> _Entry:
    """The one place where names are resolved; models from elsewhere come in here."""
    if name in _ENTRIES:
        return _ENTRIES[name]
    raise unknown("model", name, _ENTRIES, "see `python bench.py list models`")


def names() -> list[str]:
    """All architectures, family by family."""
    return list(_ENTRIES)


def info(name: str) -> ModelInfo:
    """What the plan must know of an architecture. Raises UserError for an unknown name."""
    return _find(name).info


def build(name: str, classes: int, size: int) -> nn.Module:
    """A model with fresh weights from torch's global generator, for images of `size` x `size` pixels.

    Its call is `model(images, preact=False) -> Output`.
    Raises UserError for an unknown name, and for images that it would shrink to nothing.
    """
    entry = _find(name)
    smallest = entry.info.smallest
    if size < smallest:
        raise UserError(f"{name} needs images of at least {smallest}x{smallest} pixels; got {size}x{size}")
    return entry.construct(classes, size)


def outline(name: str, classes: int, size: int) -> nn.Module:
    """The model without storage, on the meta device; no random number is drawn."""
    with torch.device("meta"):
        return build(name, classes, size)


@cache
def layout(name: str, classes: int, size: int) -> Mapping[str, Tensor]:
    """The state dict without storage: keys in order, shapes, dtypes."""
    return MappingProxyType(outline(name, classes, size).state_dict())


@cache
def features(name: str, classes: int, size: int) -> FeatureShapes:
    """The shapes of what a model returns, found without computing it."""
    output = _dry_run(outline(name, classes, size), size)
    maps = tuple((m.shape[1], m.shape[2], m.shape[3]) for m in output.maps)
    return FeatureShapes(maps, output.preact_maps is not None, output.embedding.shape[1])


@cache
def profile(name: str, classes: int, size: int) -> Profile:
    """Parameters, and multiply-accumulates for one image, biases and normalisation left out."""
    model = outline(name, classes, size)
    macs = 0

    def count(module: nn.Module, _inputs: object, out: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += out.numel() * module.weight[0].numel()  # each output value reads one row of the weights

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    _dry_run(model, size)
    return Profile(sum(parameter.numel() for parameter in model.parameters()), macs)


def _dry_run(model: nn.Module, size: int) -> Output:
    """One image through a model on the meta device."""
    with torch.no_grad():
        output = model.eval()(torch.empty(1, 3, size, size, device="meta"), preact=True)
    assert isinstance(output, Output)
    return output
