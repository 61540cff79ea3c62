"""Names, and what is known of a model without building it."""

from __future__ import annotations

import pytest
import torch

from kdbench import models
from kdbench.core.catalog import ModelInfo
from kdbench.core.errors import UserError
from kdbench.models import registry


def test_info() -> None:
    assert models.info("wrn_40_2") == ModelInfo("wrn_40_2", family="wrn", small_lr=False, smallest=1)
    assert [name for name in models.names() if models.info(name).small_lr] == ["MobileNetV2", "ShuffleV1", "ShuffleV2"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet-56", "resnet56"), ("resnet50", "ResNet50"), ("VGG_13", "vgg13"), ("mobilenet", "MobileNetV2")],
)
def test_unknown_name_with_a_near_one(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        models.info(name)
    assert str(caught.value) == f"unknown model '{name}': did you mean '{near}'? see `python bench.py list models`"


def test_unknown_name_with_no_near_one() -> None:
    with pytest.raises(UserError, match=r"^unknown model 'zzz': see `python bench.py list models`$"):
        models.build("zzz", 10, 32)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'vgg8' is taken by vgg"):
        registry._add("other", {"vgg8": lambda classes: torch.nn.Linear(1, classes)})


@pytest.mark.parametrize("name", ["resnet110", "vgg19", "MobileNetV2", "ShuffleV1"])
def test_asking_costs_no_memory_and_no_random_number(name: str) -> None:
    before = torch.get_rng_state()
    models.features(name, 11, 32)
    models.profile(name, 11, 32)
    assert all(tensor.is_meta for tensor in registry.layout(name, 11, 32).values())
    assert torch.equal(torch.get_rng_state(), before)


def test_arithmetic_of_a_network_small_enough_to_count() -> None:
    """resnet8 at 4x4 pixels and 10 classes, by hand: positions x kernel x inputs x outputs."""
    stem = 16 * 9 * 3 * 16
    stage1 = 2 * 16 * 9 * 16 * 16
    stage2 = 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    stage3 = 1 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    assert models.profile("resnet8", 10, 4).macs == stem + stage1 + stage2 + stage3 + 64 * 10


class Point:
    """An entry point of an installed package."""

    value = "their_package:net"

    def __init__(self, name: str, content: object) -> None:
        self.name, self.content = name, content

    def load(self) -> object:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def test_models_of_other_packages_come_in_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = models.Architecture(
        ModelInfo("theirnet", "theirs", small_lr=True, smallest=16), registry._OWN["resnet8"].construct
    )
    points = [Point("theirnet", theirs), Point("broken", ImportError("no torch")), Point("odd", theirs)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "kdbench.models" else [])
    assert models.names()[-3:] == ["theirnet", "broken", "odd"]
    assert models.info("theirnet").small_lr
    assert models.features("theirnet", 7, 16).embedding == 64
    with pytest.raises(UserError, match=r"^theirnet needs images of at least 16x16 pixels; got 8x8$"):
        models.build("theirnet", 7, 8)
    with pytest.raises(UserError, match=r"^the model broken of their_package:net cannot be imported: no torch$"):
        models.info("broken")
    with pytest.raises(UserError, match=r"^their_package:net is not the kdbench.models.Architecture of 'odd'$"):
        models.info("odd")
    with pytest.raises(UserError, match="did you mean 'theirnet'"):
        models.info("theirnett")


def test_restoring_draws_nothing_and_fetches_nothing() -> None:
    torch.manual_seed(0)
    weights = models.build("resnet8", 7, 16).state_dict()
    before = torch.get_rng_state()
    network = models.restore("resnet8", 7, 16, weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in weights.items())
