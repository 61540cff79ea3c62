"""Names of architectures, and what is known of a model without building it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench import models
from kdbench.core.catalog import ModelInfo
from kdbench.core.errors import UserError
from kdbench.models import registry


def test_info() -> None:
    assert models.info("wrn_40_2") == ModelInfo("wrn_40_2", family="wrn", small_lr=False, smallest=1)
    assert [name for name in models.names() if models.info(name).small_lr] == ["MobileNetV2", "ShuffleV1", "ShuffleV2"]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("resnet-56", "resnet56"), ("resnet50", "ResNet50"), ("VGG_13", "vgg13"), ("mobilenet", "MobileNetV2")],
)
def test_unknown_names_get_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(UserError) as caught:
        models.info(name)
    assert (
        str(caught.value) == f"unknown model '{name}': did you mean '{suggestion}'? see `python bench.py list models`"
    )


def test_unknown_name_without_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"^unknown model 'zzz': see `python bench.py list models`$"):
        models.build("zzz", 10, 32)


def test_a_duplicate_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="'vgg8' is taken by vgg"):
        registry._register("another family", {"vgg8": lambda classes: nn.Linear(1, classes)})


@pytest.mark.parametrize("name", ["resnet110", "vgg19", "MobileNetV2", "ShuffleV1"])
def test_shapes_and_cost_need_no_memory_and_no_random_numbers(name: str) -> None:
    state = torch.get_rng_state()
    models.features(name, 11, 32)
    models.profile(name, 11, 32)
    assert all(tensor.is_meta for tensor in registry.layout(name, 11, 32).values())
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_images_are_computed_to_the_same_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resnet20", "wrn_16_2", "ShuffleV2", "vgg8"):
        for size in (8, 16):
            state = torch.get_rng_state()
            computed = models.features.__wrapped__(name, 11, size)
            assert torch.equal(torch.get_rng_state(), state)
            with monkeypatch.context() as patch:
                patch.setattr(registry, "_COMPUTED_PIXELS", 0)
                assert models.features.__wrapped__(name, 11, size) == computed


def test_cost_of_a_small_network_by_hand() -> None:
    """resnet8 at 4x4 pixels and 10 classes: positions x kernel x inputs x outputs."""
    stem = 16 * 9 * 3 * 16
    stage1 = 2 * 16 * 9 * 16 * 16
    stage2 = 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    stage3 = 1 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    assert models.profile("resnet8", 10, 4).macs == stem + stage1 + stage2 + stage3 + 64 * 10


class FakeEntryPoint:
    """An entry point of an installed package."""

    value = "package:model"

    def __init__(self, name: str, content: object) -> None:
        self.name, self.content = name, content

    def load(self) -> object:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def test_packages_add_models_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = models.Architecture(
        ModelInfo("plugin", "plugins", small_lr=True, smallest=16), registry._BUILTIN["resnet8"].construct
    )
    contents = {"plugin": architecture, "broken": ImportError("no torch"), "misnamed": architecture}
    points = [FakeEntryPoint(name, content) for name, content in contents.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "kdbench.models" else [])
    assert models.names()[-3:] == ["plugin", "broken", "misnamed"]
    assert models.info("plugin").small_lr
    assert models.features("plugin", 7, 16).embedding_dim == 64
    with pytest.raises(UserError, match=r"^plugin needs images of at least 16x16 pixels; got 8x8$"):
        models.build("plugin", 7, 8)
    with pytest.raises(UserError, match=r"^the model broken of package:model cannot be imported: no torch$"):
        models.info("broken")
    with pytest.raises(UserError, match=r"^package:model is not the kdbench.models.Architecture of 'misnamed'$"):
        models.info("misnamed")
    with pytest.raises(UserError, match="did you mean 'plugin'"):
        models.info("plugins")


def test_models_need_neither_classifier_nor_stage_batch_norms() -> None:
    """Models of other packages may have no such methods; a classifier that is not linear does not count."""

    class Model(nn.Module):
        def get_classifier(self) -> nn.Module:
            return nn.Sequential(nn.Linear(2, 3))

    for model in (nn.Identity(), Model()):
        assert models.classifier_of(model) is None
        assert models.stage_batch_norms_of(model) is None


def test_restoring_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    weights = models.build("resnet8", 7, 16).state_dict()
    state = torch.get_rng_state()
    network = models.restore("resnet8", 7, 16, weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in weights.items())
