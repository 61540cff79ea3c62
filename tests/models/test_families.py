"""What holds for every architecture beyond the golden data: other sizes, seeds, gradients, initial weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.models import Output

VGGS = [name for name in models.names() if name.startswith("vgg")]
OTHERS = [name for name in models.names() if name not in VGGS]
ONE_A_FAMILY = ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


def shapes(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, 8) for name in models.names()]
    + [(name, size) for name in ONE_A_FAMILY for size in (12, 28, 64)]
    + [(name, 1) for name in OTHERS],
)
def test_other_sizes(name: str, size: int) -> None:
    output: Output = models.build(name, classes=7, size=size)(torch.randn(2, 3, size, size), pre_activations=True)
    assert output.pre_activations is not None
    assert output.logits.shape == (2, 7)
    assert output.logits.isfinite().all()
    promised = models.features(name, 7, size)
    assert shapes(output.feature_maps) == shapes(output.pre_activations) == promised.feature_maps
    assert output.embedding.shape == (2, promised.embedding)


@pytest.mark.parametrize("name", VGGS)
def test_vgg_says_what_it_needs(name: str) -> None:
    assert models.info(name).smallest == 8
    for refuse in (models.build, models.features, models.profile):
        with pytest.raises(UserError, match=rf"^{name} needs images of at least 8x8 pixels; got 7x7$"):
            refuse(name, 10, 7)


def test_vgg_pools_large_images_once_more() -> None:
    """The last block sees 4x4 positions at 32 pixels (pooled three times) and at 64 (four times)."""
    assert [shape[1:] for shape in models.features("vgg8", 10, 32).feature_maps[-2:]] == [(4, 4), (4, 4)]
    assert [shape[1:] for shape in models.features("vgg8", 10, 64).feature_maps[-2:]] == [(8, 8), (4, 4)]


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_preact_changes_nothing_else(name: str) -> None:
    """The pre-activation maps come from the same forward: equal results, equal normalization, one update."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    model = models.build(name, classes=5, size=16).train()
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    plain: Output = model(images)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    asked: Output = model(images, pre_activations=True)

    assert plain.pre_activations is None
    torch.testing.assert_close(asked.logits, plain.logits, rtol=0, atol=0)
    torch.testing.assert_close(asked.feature_maps, plain.feature_maps, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet8", "ResNet50", "vgg8", "ShuffleV1"])
def test_maps_are_activated_preact_maps(name: str) -> None:
    output: Output = models.build(name, classes=5, size=16)(torch.randn(2, 3, 16, 16), pre_activations=True)
    assert output.pre_activations is not None
    for after, before in zip(output.feature_maps[1:], output.pre_activations[1:], strict=True):
        torch.testing.assert_close(after, before.relu(), rtol=0, atol=0)
        assert before.min() < 0


def test_shufflenetv2_shuffles_only_the_maps() -> None:
    """As published: channel 2i + j of a map is channel j * K/2 + i of the pre-activation map."""
    output: Output = models.build("ShuffleV2", classes=5, size=16)(torch.randn(2, 3, 16, 16), pre_activations=True)
    assert output.pre_activations is not None
    for after, before in zip(output.feature_maps[1:], output.pre_activations[1:], strict=True):
        half = before.shape[1] // 2
        order = [j * half + i for i in range(half) for j in range(2)]
        torch.testing.assert_close(after, before[:, order].relu(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=5, size=16)
    output: Output = model(torch.randn(4, 3, 16, 16), pre_activations=True)
    nn.functional.cross_entropy(output.logits, torch.arange(4)).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_channels_last_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=5, size=16).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output: Output = model(images, pre_activations=True)
    assert output.logits.dtype == torch.bfloat16
    output.logits.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    def weights(seed: int, size: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return models.build(name, classes=5, size=size).state_dict()

    first = weights(1, 32)
    torch.testing.assert_close(weights(1, 32), first, rtol=0, atol=0)
    torch.testing.assert_close(weights(1, 16), first, rtol=0, atol=0)
    other = weights(2, 32)
    assert all(not torch.equal(other[key], tensor) for key, tensor in first.items() if tensor.ndim > 1)


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
    # The standard deviation of n normal values is itself uncertain by 1 / sqrt(2n); five of those.
    assert weight.std().item() == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5)
    assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5


@pytest.mark.parametrize("key", ["vgg8 classifier", "vgg8 block2.0", "MobileNetV2 classifier.0", "wrn_16_1 fc"])
def test_biases_that_start_at_zero(key: str) -> None:
    name, module = key.split()
    assert not models.build(name, classes=10, size=32).state_dict()[f"{module}.bias"].any()


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_batch_norms_start_as_identity(name: str) -> None:
    norms = [
        module for module in models.build(name, classes=10, size=32).modules() if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_output_converts_every_tensor() -> None:
    tensor = torch.ones(1, 2)
    both = Output(tensor, (tensor, tensor), tensor, (tensor,)).convert(Tensor.double)
    assert both.pre_activations is not None
    assert {t.dtype for t in (both.logits, *both.feature_maps, both.embedding, *both.pre_activations)} == {
        torch.float64
    }
    assert Output(tensor, (tensor,), tensor).convert(Tensor.double).pre_activations is None
