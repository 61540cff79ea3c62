from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.dataset import Decoded, Source, Split
from kdbench.data.resident import ResidentDataset
from kdbench.data.subset import channel_statistics, safe_label, select, stratified
from tests.data.build import get, noise


def chosen(labels: list[int], test: list[int], names: int, **request: Any) -> ResidentDataset:
    decoded = Decoded(
        Split(torch.from_numpy(noise(len(labels))), torch.tensor(labels)),
        Split(torch.from_numpy(noise(len(test), seed=1)), torch.tensor(test)),
        {number: f"c{number}" for number in range(names)},
    )
    source = Source("pets", {}, lambda size: decoded)
    return select(source, decoded, DataRequest("folder:pets", 8, **request))


def test_classes_are_renumbered_in_both_splits() -> None:
    found = chosen([3, 0, 1, 3, 2], [2, 3, 3, 0], 4, classes=(3, 0))
    assert found.train.labels.tolist() == [1, 0, 1]
    assert found.test.labels.tolist() == [1, 1, 0]
    assert found.class_names == ("c0", "c3")
    np.testing.assert_array_equal(found.train.images.numpy(), noise(5)[[0, 1, 3]])
    assert (found.info.classes, found.info.train, found.info.test) == (2, 3, 3)


@pytest.mark.parametrize(
    ("classes", "subset", "label"),
    [
        (None, None, "pets"),
        (None, 30, "pets"),
        (None, 12, "pets[n=12]"),
        (tuple(range(10)), None, "pets"),
        ((0, 1, 2, 3, 4), None, "pets[0-4]"),
        ((7, 0, 1, 2, 3, 4), None, "pets[0-4,7]"),
        ((0, 1, 2, 3, 4, 7), 18, "pets[0-4,7]"),
        ((1, 3, 4, 9), 6, "pets[1,3-4,9,n=6]"),
    ],
)
def test_labels_name_the_selection(classes: tuple[int, ...] | None, subset: int | None, label: str) -> None:
    assert chosen(list(range(10)) * 3, list(range(10)), 10, classes=classes, subset=subset).info.label == label


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"classes": (0, 4, 5)}, r"--classes: pets has no class 4-5; its classes are 0-3"),
        ({"classes": (-1, 0, 1)}, r"--classes: pets has no class -1"),
        ({"classes": (2,)}, r"pets: 1 class is left; a classifier needs at least two"),
        ({"classes": ()}, r"pets: 0 class is left"),
        ({"classes": (2, 3)}, r"pets: the test split has no image of the classes 2-3"),
        ({"subset": 9}, r"--subset 9: pets has 8 training images; ask for 1 to 8"),
        ({"subset": 5, "classes": (0, 1)}, r"--subset 5: pets has 4 training images of these classes; ask for 1 to 4"),
        ({"subset": 0}, r"--subset 0: .* ask for 1 to 8"),
    ],
)
def test_impossible_selections(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        chosen([0, 1, 2, 3] * 2, [0, 1, 0], 4, **request_)


def test_classes_without_training_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chosen([0, 1, 0], [0, 1], 4)
    assert "pets: 2 of the 4 classes have no training image" in caplog.text


def test_a_subset_keeps_proportions_and_order() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator())]
    rows = stratified(labels, 37)  # 18.5, 11.1, 7.4: the spare one goes to the largest remainder
    assert labels[rows].bincount().tolist() == [19, 11, 7]
    assert (rows.diff() > 0).all()
    assert torch.equal(rows, stratified(labels, 37))
    assert set(stratified(labels, 10).tolist()) < set(rows.tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 10, 11])
def test_a_subset_has_the_size_asked_for(count: int) -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 4, 4, 4, 4])
    rows = stratified(labels, count)
    assert len(rows.unique()) == count
    exact = labels.bincount() * count / len(labels)
    assert ((labels[rows].bincount(minlength=5) - exact).abs() < 1).all()


def test_a_subset_is_not_the_first_images() -> None:
    assert stratified(torch.zeros(1000, dtype=torch.int64), 100).float().mean() > 300


def test_mean_and_std_are_those_of_plain_numpy() -> None:
    images = noise(20) // 2 + np.array([0, 50, 100], dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    scaled = images.reshape(-1, 3) / 255
    assert mean == pytest.approx(scaled.mean(axis=0), abs=5.1e-5)
    assert std == pytest.approx(scaled.std(axis=0), abs=5.1e-5)
    assert all(round(value, 4) == value for value in mean + std)


def test_images_without_contrast_do_not_divide_by_zero() -> None:
    assert channel_statistics(torch.full((2, 3, 3, 3), 51, dtype=torch.uint8)) == ((0.2, 0.2, 0.2), (1.0, 1.0, 1.0))


def test_mean_and_std_come_after_classes_and_before_the_subset() -> None:
    labels = [0, 1, 2] * 4
    whole, few = chosen(labels, [0, 1, 2], 3), chosen(labels, [0, 1, 2], 3, subset=5)
    two = chosen(labels, [0, 1, 2], 3, classes=(0, 2))
    assert whole.info.mean == few.info.mean != two.info.mean
    assert (two.info.mean, two.info.std) == channel_statistics(two.train.images)


def test_content_follows_images_labels_and_selection(tmp_path: Path) -> None:
    labels = [0, 1, 2] * 4
    whole = chosen(labels, [0, 1, 2], 3).info
    assert len(whole.content) == 64
    assert chosen(labels, [0, 1, 2], 3).info == whole
    others = [
        chosen([1, 0, 2, *labels[3:]], [0, 1, 2], 3),
        chosen(labels, [0, 2, 1], 3),
        chosen(labels, [0, 1], 3),
        chosen(labels, [0, 1, 2], 3, subset=11),
        chosen(labels, [0, 1, 2], 3, classes=(0, 1)),
    ]
    assert len({whole.content, *(other.info.content for other in others)}) == 6
    # Keeping all is no selection.
    everything = chosen(labels, [0, 1, 2], 3, classes=(0, 1, 2), subset=12).info
    assert replace(everything, request=None) == replace(whole, request=None)


def test_selected_digits(tmp_path: Path) -> None:
    found = get("digits", tmp_path, classes=(1, 7, 8), subset=100)
    assert found.info.label == "digits[1,7-8,n=100]"
    assert found.class_names == ("1", "7", "8")
    assert found.train.labels.bincount().tolist() == [34, 33, 33]
    assert found.train.images.is_contiguous()


@pytest.mark.parametrize(
    ("name", "label"),
    [("pets", "folder:pets"), ("my pets/[x]", "folder:my-pets-x"), ("été", "folder:t"), ("", "folder:images")],
)
def test_labels_are_safe(name: str, label: str) -> None:
    assert safe_label("folder", name) == label


def test_images_are_held_out_after_everything_else(tmp_path: Path) -> None:
    whole = get("digits", tmp_path, subset=500)
    held = get("digits", tmp_path, subset=500, val_fraction=0.1)
    assert held.val is not None
    assert (held.info.label, held.info.train, held.info.val, len(held.val)) == ("digits[n=500,val=0.1]", 450, 50, 50)
    both = sorted(map(bytes, torch.cat([held.train.images, held.val.images]).numpy()))
    assert both == sorted(map(bytes, whole.train.images.numpy()))
    assert held.val.labels.bincount().tolist() == pytest.approx([5] * 10, abs=1)
    assert torch.equal(held.test.images, whole.test.images)
    assert held.info.content != whole.info.content
    assert (whole.val, whole.info.val) == (None, 0)
    for fraction in (1.0, -0.1, 1e-9):
        with pytest.raises(UserError, match="--val-fraction must leave images on both sides"):
            get("digits", tmp_path, val_fraction=fraction)
