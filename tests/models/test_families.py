"""Every architecture beyond the golden data: sizes, seeds, gradients, initial weights, classifiers, batch norms."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.models import Output

VGGS = [name for name in models.names() if name.startswith("vgg")]
NOT_VGGS = [name for name in models.names() if name not in VGGS]
ONE_PER_FAMILY = ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, 8) for name in models.names()]
    + [(name, size) for name in ONE_PER_FAMILY for size in (12, 28, 64)]
    + [(name, 1) for name in NOT_VGGS],
)
def test_image_sizes(name: str, size: int) -> None:
    output: Output = models.build(name, classes=7, size=size)(torch.randn(2, 3, size, size), pre_activations=True)
    assert output.pre_activations is not None
    assert output.logits.shape == (2, 7)
    assert output.logits.isfinite().all()
    expected = models.features(name, 7, size)
    assert shapes(output.feature_maps) == shapes(output.pre_activations) == expected.feature_maps
    assert output.embedding.shape == (2, expected.embedding_dim)


@pytest.mark.parametrize("name", VGGS)
def test_vgg_refuses_images_that_are_too_small(name: str) -> None:
    assert models.info(name).smallest == 8
    for function in (models.build, models.features, models.profile):
        with pytest.raises(UserError, match=rf"^{name} needs images of at least 8x8 pixels; got 7x7$"):
            function(name, 10, 7)


def test_vgg_pools_large_images_once_more() -> None:
    """The input of the last block has 4x4 positions at 32 pixels (pooled three times) and at 64 (four times)."""
    assert [shape[1:] for shape in models.features("vgg8", 10, 32).feature_maps[-2:]] == [(4, 4), (4, 4)]
    assert [shape[1:] for shape in models.features("vgg8", 10, 64).feature_maps[-2:]] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_asking_for_pre_activations_changes_nothing_else(name: str) -> None:
    """Pre-activation maps come from the same forward pass: equal outputs, and one update of running statistics."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    model = models.build(name, classes=5, size=16).train()
    initial = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    plain: Output = model(images)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(initial)
    complete: Output = model(images, pre_activations=True)

    assert plain.pre_activations is None
    torch.testing.assert_close(complete.logits, plain.logits, rtol=0, atol=0)
    torch.testing.assert_close(complete.feature_maps, plain.feature_maps, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet8", "ResNet50", "vgg8", "ShuffleV1"])
def test_feature_maps_are_activated_pre_activation_maps(name: str) -> None:
    output: Output = models.build(name, classes=5, size=16)(torch.randn(2, 3, 16, 16), pre_activations=True)
    assert output.pre_activations is not None
    for feature_map, pre_activation in zip(output.feature_maps[1:], output.pre_activations[1:], strict=True):
        torch.testing.assert_close(feature_map, pre_activation.relu(), rtol=0, atol=0)
        assert pre_activation.min() < 0


def test_shufflenetv2_does_not_shuffle_pre_activation_maps() -> None:
    """Channel 2i + j of a feature map is channel j * K/2 + i of the pre-activation map, as in the published code."""
    output: Output = models.build("ShuffleV2", classes=5, size=16)(torch.randn(2, 3, 16, 16), pre_activations=True)
    assert output.pre_activations is not None
    for feature_map, pre_activation in zip(output.feature_maps[1:], output.pre_activations[1:], strict=True):
        half = pre_activation.shape[1] // 2
        order = [j * half + i for i in range(half) for j in range(2)]
        torch.testing.assert_close(feature_map, pre_activation[:, order].relu(), rtol=0, atol=0)


@pytest.mark.parametrize("name", models.names())
@torch.no_grad()
def test_the_classifier_turns_embeddings_into_logits(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=7, size=32).eval()
    output: Output = model(torch.randn(2, 3, 32, 32))
    classifier = models.classifier_of(model)
    assert classifier is not None
    weight, bias = classifier
    assert bias is not None
    bias.normal_()  # some initializers set it to 0
    output = model(torch.randn(2, 3, 32, 32))
    assert weight.shape == (7, models.features(name, 7, 32).embedding_dim)
    torch.testing.assert_close(output.logits, nn.functional.linear(output.embedding, weight, bias), rtol=0, atol=0)
    torch.testing.assert_close(output.logits, output.embedding @ weight.T + bias)
    assert models.features(name, 7, 32).classifier


@pytest.mark.parametrize("name", models.names())
@torch.no_grad()
def test_stage_batch_norms_come_before_the_last_activation_of_each_stage(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=7, size=32).eval()
    norms = models.stage_batch_norms_of(model)
    assert models.features(name, 7, 32).stage_batch_norms == (norms is not None)
    assert (norms is None) == name.startswith("Shuffle")  # a stage's map is concatenated from two branches
    if norms is None:
        return
    results: list[Tensor] = []
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.register_forward_hook(lambda _norm, _inputs, result: results.append(result))
    output: Output = model(torch.randn(2, 3, 32, 32), pre_activations=True)
    assert output.pre_activations is not None
    stages = output.pre_activations[1:]
    assert [norm.num_features for norm in norms] == [stage.shape[1] for stage in stages]
    assert shapes(results) == shapes(stages)
    if models.info(name).family in ("wrn", "vgg"):  # elsewhere a shortcut may be added
        torch.testing.assert_close(tuple(results), tuple(stages), rtol=0, atol=0)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=5, size=16)
    output: Output = model(torch.randn(4, 3, 16, 16), pre_activations=True)
    nn.functional.cross_entropy(output.logits, torch.arange(4)).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_channels_last_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=5, size=16).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output: Output = model(images, pre_activations=True)
    assert output.logits.dtype == torch.bfloat16
    output.logits.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_initial_weights_depend_only_on_the_seed(name: str) -> None:
    def weights(seed: int, size: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return models.build(name, classes=5, size=size).state_dict()

    first = weights(1, 32)
    torch.testing.assert_close(weights(1, 32), first, rtol=0, atol=0)
    torch.testing.assert_close(weights(1, 16), first, rtol=0, atol=0)
    second = weights(2, 32)
    assert all(not torch.equal(second[key], tensor) for key, tensor in first.items() if tensor.ndim > 1)


@pytest.mark.parametrize(
    ("name", "key", "std"),
    [
        # convolutions: sqrt(2 / (k * k * outputs))
        ("resnet32x4", "layer3.1.conv2.weight", (2 / (9 * 256)) ** 0.5),
        ("resnet32x4", "layer3.0.downsample.0.weight", (2 / 256) ** 0.5),
        ("ResNet50", "layer3.1.conv1.weight", (2 / 256) ** 0.5),
        ("wrn_16_2", "block3.layer.1.conv1.weight", (2 / (9 * 128)) ** 0.5),
        ("vgg8", "block3.0.weight", (2 / (9 * 512)) ** 0.5),
        ("MobileNetV2", "conv2.0.weight", (2 / 1280) ** 0.5),
        ("MobileNetV2", "blocks.6.0.conv.3.weight", (2 / (9 * 480)) ** 0.5),
        # classifiers
        ("vgg8", "classifier.weight", 0.01),
        ("MobileNetV2", "classifier.0.weight", 0.01),
        ("resnet32x4", "fc.weight", (3 * 256) ** -0.5),  # torch's own: uniform within 1 / sqrt(inputs)
        ("wrn_16_2", "fc.weight", (3 * 128) ** -0.5),
        # torch's own
        ("ShuffleV1", "layer3.1.conv3.weight", (3 * 80) ** -0.5),
        ("ShuffleV2", "conv2.weight", (3 * 464) ** -0.5),
    ],
)
def test_initial_weights(name: str, key: str, std: float) -> None:
    torch.manual_seed(0)
    weight = models.build(name, classes=100, size=32).state_dict()[key]
    # The standard deviation of n normal values has a relative standard error of 1 / sqrt(2n); five of these.
    assert weight.std().item() == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5)
    assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5


@pytest.mark.parametrize("key", ["vgg8 classifier", "vgg8 block2.0", "MobileNetV2 classifier.0", "wrn_16_1 fc"])
def test_biases_that_start_at_zero(key: str) -> None:
    name, module = key.split()
    assert not models.build(name, classes=10, size=32).state_dict()[f"{module}.bias"].any()


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_batch_norms_start_as_identity(name: str) -> None:
    norms = [
        module for module in models.build(name, classes=10, size=32).modules() if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_output_converts_every_tensor() -> None:
    tensor = torch.ones(1, 2)
    output = Output(tensor, (tensor, tensor), tensor, (tensor,)).convert(Tensor.double)
    assert [converted.dtype for converted in output.tensors()] == [torch.float64] * 5
    assert Output(tensor, (tensor,), tensor).convert(Tensor.double).pre_activations is None


def test_output_keeps_its_classifier() -> None:
    tensor = torch.ones(1, 2)
    output = Output(tensor, (tensor,), tensor, classifier=(tensor, None))
    assert output.convert(Tensor.double).materialize().classifier is output.classifier
    assert len(output.tensors()) == 3


def test_feature_maps_are_converted_once_when_they_are_read() -> None:
    converted: list[float] = []

    def convert(tensor: Tensor) -> Tensor:
        converted.append(tensor.item())
        return tensor + 10

    zero, *rest = (torch.tensor(float(number)) for number in range(6))
    output = Output(zero, tuple(rest[:3]), zero, tuple(rest[3:])).convert(convert)
    assert output.pre_activations is not None
    assert converted == [0, 0]  # logits and embedding
    assert output.feature_maps[-1].item() == 13
    assert output.feature_maps[2] is output.feature_maps[-1]
    assert output.feature_maps[1:] == (output.feature_maps[1], output.feature_maps[2])
    assert converted == [0, 0, 3, 2]
    complete = output.materialize()
    assert sorted(converted) == [0, 0, 1, 2, 3, 4, 5]
    assert [tensor.item() for tensor in complete.tensors()] == [10, 10, 11, 12, 13, 14, 15]
    with pytest.raises(IndexError):
        output.feature_maps[3]
