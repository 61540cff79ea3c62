"""The architectures by name: what there is, what it gives, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

import torch
from torch import Tensor, nn

from kdbench.core.catalog import ModelInfo
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import PRETRAINED
from kdbench.models import mobilenetv2, resnet, resnet_bottleneck, shufflenetv1, shufflenetv2, timm_models, vgg, wrn
from kdbench.models.architecture import Architecture, Construct
from kdbench.models.blocks import Architectures
from kdbench.models.output import Classifier, Output

MapShape = tuple[int, int, int]  # K, H, W
ENTRY_POINTS = "kdbench.models"
_MISFITS = (AssertionError, RuntimeError, TypeError, ValueError)  # how layers refuse images of a wrong size


@dataclass(frozen=True)
class FeatureShapes:
    """The shapes of an `Output`, batch apart."""

    feature_maps: tuple[MapShape, ...]  # the stem's, then one a stage
    pre_activations: bool  # whether the model can give them; their shapes are those of `feature_maps`
    embedding_dim: int
    classifier: bool = True  # whether the logits are one linear layer over the embedding
    stage_batch_norms: bool = False  # whether the batch norm before each stage's last activation is known


@dataclass(frozen=True)
class Profile:
    """The size of a model and its arithmetic for one image."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers


_OWN: dict[str, Architecture] = {}


def _add(family: str, architectures: Architectures, *, small_lr: bool = False, smallest: int = 1) -> None:
    for name, construct in architectures.items():
        if name in _OWN:
            raise ValueError(f"the architecture {name!r} is taken by {_OWN[name].info.family}")
        _OWN[name] = Architecture(ModelInfo(name, family, small_lr, smallest), _for_any_size(construct))


def _for_any_size(construct: Callable[[int], nn.Module]) -> Construct:
    """These networks end in global pooling, so their layers do not depend on the size of the images."""
    return lambda classes, _size: construct(classes)


_add("resnet", resnet.ARCHITECTURES)
_add("resnet-bottleneck", resnet_bottleneck.ARCHITECTURES)
_add("wrn", wrn.ARCHITECTURES)
_add("vgg", vgg.ARCHITECTURES, smallest=vgg.SMALLEST)
_add("mobilenetv2", mobilenetv2.ARCHITECTURES, small_lr=True)
_add("shufflenetv1", shufflenetv1.ARCHITECTURES, small_lr=True)
_add("shufflenetv2", shufflenetv2.ARCHITECTURES, small_lr=True)


def _find(name: str) -> Architecture:
    """The one place where names are resolved: our own, timm's, those of installed packages."""
    if name in _OWN:
        return _OWN[name]
    if name.startswith(timm_models.PREFIX):
        return timm_models.architecture(name)
    others = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in others:
        return _load(others[name])
    if name.removesuffix(PRETRAINED) in {*_OWN, *others}:
        raise UserError(f"no weights come with {name.removesuffix(PRETRAINED)}: give a teacher's file with --teacher")
    raise unknown_name("model", name, {*_OWN, *others}, "see `python bench.py list models`")


@cache
def _load(point: EntryPoint) -> Architecture:
    try:
        found = point.load()
    except Exception as error:
        raise UserError(f"the model {point.name} of {point.value} cannot be imported: {error}") from error
    if not isinstance(found, Architecture) or found.info.name != point.name:
        raise UserError(f"{point.value} is not the kdbench.models.Architecture of {point.name!r}")
    return found


def names() -> list[str]:
    """Our own architectures, family by family, then those of installed packages; timm's are asked for by name."""
    return [*_OWN, *(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in _OWN)]


def info(name: str) -> ModelInfo:
    """What the plan must know of an architecture, its canonical name first. Raises UserError for an unknown one."""
    return _find(name).info


def build(name: str, classes: int, size: int) -> nn.Module:
    """A model as its training begins, for images of `size` x `size` pixels; draws from torch's global generator.

    Its call is `model(images, pre_activations=False) -> Output`.
    Raises UserError for an unknown name, for images that it cannot take, and for pretrained weights that are not there.
    """
    architecture = _find(name)
    return _construct(architecture, architecture.pretrained or architecture.construct, classes, size)


def restore(name: str, classes: int, size: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model with the weights given; the global generator stays as it is. Raises what `load_state_dict` raises."""
    architecture = _find(name)
    with torch.random.fork_rng(devices=[]):
        model = _construct(architecture, architecture.construct, classes, size)
    model.load_state_dict(dict(weights))
    return model


def fetch(name: str, classes: int, size: int) -> None:
    """Make sure that `build` finds the weights that this model starts from. Raises UserError."""
    with torch.random.fork_rng(devices=[]):
        build(name, classes, size)


def _construct(architecture: Architecture, construct: Construct, classes: int, size: int) -> nn.Module:
    name, smallest = architecture.info.name, architecture.info.smallest
    if size < smallest:
        raise UserError(f"{name} needs images of at least {smallest}x{smallest} pixels; got {size}x{size}")
    try:
        return construct(classes, size)
    except _MISFITS as error:
        raise _unfit(name, size, error) from error


def _unfit(name: str, size: int, error: Exception) -> UserError:
    """The sentence for a model that finds its images too small, or of a wrong size."""
    first = (str(error).splitlines() or [""])[0]
    return UserError(f"{name} cannot take images of {size}x{size} pixels ({type(error).__name__}: {first})")


def outline(name: str, classes: int, size: int) -> nn.Module:
    """The model without storage, on the meta device; no random number is drawn, nothing is fetched."""
    architecture = _find(name)
    with torch.device("meta"):
        return _construct(architecture, architecture.construct, classes, size)


@cache
def layout(name: str, classes: int, size: int) -> Mapping[str, Tensor]:
    """The state dict without storage: keys in order, shapes, dtypes."""
    return MappingProxyType(outline(name, classes, size).state_dict())


@cache
def features(name: str, classes: int, size: int) -> FeatureShapes:
    """The shapes of what a model returns, found without computing it. Raises UserError for images unfit for it."""
    model = outline(name, classes, size)
    try:
        output = _dry_run(model, size)
    except _MISFITS as error:
        raise _unfit(name, size, error) from error
    maps = tuple((m.shape[1], m.shape[2], m.shape[3]) for m in output.feature_maps)
    return FeatureShapes(
        maps,
        output.pre_activations is not None,
        output.embedding.shape[1],
        classifier_of(model) is not None,
        stage_batch_norms_of(model) is not None,
    )


def classifier_of(model: nn.Module) -> Classifier | None:
    """Weight and bias of the linear layer that makes logits of embeddings; None where a model has no such layer."""
    get_classifier = getattr(model, "get_classifier", None)
    layer = get_classifier() if get_classifier else None
    return (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None


def stage_batch_norms_of(model: nn.Module) -> tuple[nn.BatchNorm2d, ...] | None:
    """The batch norm before the last activation of each stage, where a model tells; None where it does not."""
    stage_batch_norms = getattr(model, "stage_batch_norms", None)
    return stage_batch_norms() if stage_batch_norms else None


@cache
def profile(name: str, classes: int, size: int) -> Profile:
    """Parameters, and multiply-accumulates for one image, biases and normalization left out."""
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
        output = model.eval()(torch.empty(1, 3, size, size, device="meta"), pre_activations=True)
    assert isinstance(output, Output)
    return output
