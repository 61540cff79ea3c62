"""Architectures by name: construction, output shapes and cost."""

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
_COMPUTED_PIXELS = 16  # a side, up to which a dry run of a built-in network computes its output, in milliseconds
_SIZE_ERRORS = (AssertionError, RuntimeError, TypeError, ValueError)  # what layers raise for images of a wrong size


@dataclass(frozen=True)
class FeatureShapes:
    """The shapes of an `Output` without the batch dimension."""

    feature_maps: tuple[MapShape, ...]  # the stem's, then one per stage
    pre_activations: bool  # whether the model gives them; they have the shapes of `feature_maps`
    embedding_dim: int
    classifier: bool = True  # whether the logits are a linear layer of the embedding
    last_map: MapShape | None = None  # of the map whose mean over positions is the embedding
    stage_batch_norms: bool = False  # whether the model names the batch norm before each stage's last activation


@dataclass(frozen=True)
class Profile:
    """The cost of a model."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions and linear layers for one image


_BUILTIN: dict[str, Architecture] = {}


def _register(family: str, architectures: Architectures, *, small_lr: bool = False, smallest: int = 1) -> None:
    for name, construct in architectures.items():
        if name in _BUILTIN:
            raise ValueError(f"the architecture {name!r} is taken by {_BUILTIN[name].info.family}")
        _BUILTIN[name] = Architecture(ModelInfo(name, family, small_lr, smallest), _for_any_size(construct))


def _for_any_size(construct: Callable[[int], nn.Module]) -> Construct:
    """Add a size that is ignored: these networks end in global pooling, so their layers do not depend on it."""
    return lambda classes, _size: construct(classes)


_register("resnet", resnet.ARCHITECTURES)
_register("resnet-bottleneck", resnet_bottleneck.ARCHITECTURES)
_register("wrn", wrn.ARCHITECTURES)
_register("vgg", vgg.ARCHITECTURES, smallest=vgg.SMALLEST)
_register("mobilenetv2", mobilenetv2.ARCHITECTURES, small_lr=True)
_register("shufflenetv1", shufflenetv1.ARCHITECTURES, small_lr=True)
_register("shufflenetv2", shufflenetv2.ARCHITECTURES, small_lr=True)


def _find(name: str) -> Architecture:
    """The architecture of a name: built in, from timm, or from an installed package. Raises UserError."""
    if name in _BUILTIN:
        return _BUILTIN[name]
    if name.startswith(timm_models.PREFIX):
        return timm_models.architecture(name)
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in plugins:
        return _load(plugins[name])
    if name.removesuffix(PRETRAINED) in {*_BUILTIN, *plugins}:
        raise UserError(f"no weights come with {name.removesuffix(PRETRAINED)}: give a teacher's file with --teacher")
    raise unknown_name("model", name, {*_BUILTIN, *plugins}, "see `python bench.py list models`")


@cache
def _load(point: EntryPoint) -> Architecture:
    try:
        architecture = point.load()
    except Exception as error:
        raise UserError(f"the model {point.name} of {point.value} cannot be imported: {error}") from error
    if not isinstance(architecture, Architecture) or architecture.info.name != point.name:
        raise UserError(f"{point.value} is not the kdbench.models.Architecture of {point.name!r}")
    return architecture


def names() -> list[str]:
    """The built-in architectures, family by family, then those of installed packages; timm's are not listed."""
    return [*_BUILTIN, *(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in _BUILTIN)]


def info(name: str) -> ModelInfo:
    """What the plan needs to know of an architecture, such as its canonical name. Raises UserError if it is unknown."""
    return _find(name).info


def build(name: str, classes: int, size: int) -> nn.Module:
    """A model with its initial weights, for images of `size` x `size` pixels; draws from torch's global generator.

    It is called as `model(images, pre_activations=False) -> Output`.
    Raises UserError for an unknown name, an image size that does not fit, and weights that cannot be fetched.
    """
    architecture = _find(name)
    return _construct(architecture, architecture.pretrained or architecture.construct, classes, size)


def restore(name: str, classes: int, size: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model with the given weights; torch's global generator is unchanged. Raises what `load_state_dict` raises."""
    architecture = _find(name)
    with torch.random.fork_rng(devices=[]):
        model = _construct(architecture, architecture.construct, classes, size)
    model.load_state_dict(dict(weights))
    return model


def fetch(name: str, classes: int, size: int) -> None:
    """Fetch the pretrained weights, if any, so that `build` finds them. Raises UserError if they cannot be fetched."""
    with torch.random.fork_rng(devices=[]):
        build(name, classes, size)


def _construct(architecture: Architecture, construct: Construct, classes: int, size: int) -> nn.Module:
    name, smallest = architecture.info.name, architecture.info.smallest
    if size < smallest:
        raise UserError(f"{name} needs images of at least {smallest}x{smallest} pixels; got {size}x{size}")
    try:
        return construct(classes, size)
    except _SIZE_ERRORS as error:
        raise _size_error(name, size, error) from error


def _size_error(name: str, size: int, error: Exception) -> UserError:
    """The error for images of a size that a layer refused with `error`."""
    first_line = (str(error).splitlines() or [""])[0]
    return UserError(f"{name} cannot take images of {size}x{size} pixels ({type(error).__name__}: {first_line})")


def _dry_model(name: str, classes: int, size: int) -> nn.Module:
    """The model on the device where a dry run takes least: the meta device, or for tiny images the CPU.

    The first operators on the meta device let torch load torch._dynamo and sympy: a second or two of a command's start,
    which is noticed only where the whole study takes minutes.
    """
    if name not in _BUILTIN or size > _COMPUTED_PIXELS:
        return outline(name, classes, size)
    with torch.random.fork_rng(devices=[]):
        return _construct(_BUILTIN[name], _BUILTIN[name].construct, classes, size)


def outline(name: str, classes: int, size: int) -> nn.Module:
    """The model on the meta device: no memory, no random numbers, no downloads."""
    architecture = _find(name)
    with torch.device("meta"):
        return _construct(architecture, architecture.construct, classes, size)


@cache
def layout(name: str, classes: int, size: int) -> Mapping[str, Tensor]:
    """The state dict on the meta device: keys in order, shapes and dtypes."""
    return MappingProxyType(outline(name, classes, size).state_dict())


@cache
def features(name: str, classes: int, size: int) -> FeatureShapes:
    """The shapes of a model's output. Raises UserError for an image size that does not fit."""
    model = _dry_model(name, classes, size)
    try:
        output = _dry_run(model, size)
    except _SIZE_ERRORS as error:
        raise _size_error(name, size, error) from error
    return FeatureShapes(
        tuple(_map_shape(feature_map) for feature_map in output.feature_maps),
        output.pre_activations is not None,
        output.embedding.shape[1],
        classifier_of(model) is not None,
        None if output.last_map is None else _map_shape(output.last_map),
        stage_batch_norms_of(model) is not None,
    )


def _map_shape(feature_map: Tensor) -> MapShape:
    _, channels, height, width = feature_map.shape
    return channels, height, width


def classifier_of(model: nn.Module) -> Classifier | None:
    """Weight and bias of the linear layer that turns embeddings into logits; None if the model has no such layer."""
    get_classifier = getattr(model, "get_classifier", None)
    layer = get_classifier() if get_classifier else None
    return (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else None


def stage_batch_norms_of(model: nn.Module) -> tuple[nn.BatchNorm2d, ...] | None:
    """The batch norm before the last activation of each stage; None if the model does not name them."""
    stage_batch_norms = getattr(model, "stage_batch_norms", None)
    return stage_batch_norms() if stage_batch_norms else None


@cache
def profile(name: str, classes: int, size: int) -> Profile:
    """Parameters, and multiply-accumulates for one image without biases and normalization."""
    model = outline(name, classes, size)
    macs = 0

    def count(module: nn.Module, _inputs: object, out: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += out.numel() * module.weight[0].numel()  # one row of the weights per output value

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    _dry_run(model, size)
    return Profile(sum(parameter.numel() for parameter in model.parameters()), macs)


def _dry_run(model: nn.Module, size: int) -> Output:
    """The output of a model for one image, on the device where the model is."""
    device = next(model.parameters()).device
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, 3, size, size, device=device), pre_activations=True)
    assert isinstance(output, Output)
    return output
