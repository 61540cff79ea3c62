"""Names, and what is known of a model without building it."""

from __future__ import annotations

import pytest
import torch

from kdbench import models
from kdbench.models import zoo
from kdbench.spec import ModelInfo, UserError


def test_info() -> None:
    assert models.info("wrn_40_2") == ModelInfo("wrn_40_2", family="wrn", light=False, smallest=1)
    assert [name for name in models.names() if models.info(name).light] == ["MobileNetV2", "ShuffleV1", "ShuffleV2"]


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
        zoo._add("other", {"vgg8": lambda classes: torch.nn.Linear(1, classes)})


@pytest.mark.parametrize("name", ["resnet110", "vgg19", "MobileNetV2", "ShuffleV1"])
def test_asking_costs_no_memory_and_no_random_number(name: str) -> None:
    before = torch.get_rng_state()
    models.features(name, 11, 32)
    models.profile(name, 11, 32)
    assert all(tensor.is_meta for tensor in zoo.layout(name, 11, 32).values())
    assert torch.equal(torch.get_rng_state(), before)


def test_arithmetic_of_a_network_small_enough_to_count() -> None:
    """resnet8 at 4x4 pixels and 10 classes, by hand: positions x kernel x inputs x outputs."""
    stem = 16 * 9 * 3 * 16
    stage1 = 2 * 16 * 9 * 16 * 16
    stage2 = 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    stage3 = 1 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
    assert models.profile("resnet8", 10, 4).macs == stem + stage1 + stage2 + stage3 + 64 * 10
