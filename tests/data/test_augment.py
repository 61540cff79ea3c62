from __future__ import annotations

import pytest
import torch

from kdbench.core.errors import UserError
from kdbench.data.augment import show, views

IMAGES = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3) + 1


def test_the_order_of_views() -> None:
    assert views(1, 4, flip=True) == [(0, 0, False)]
    assert views(3, 4, flip=True) == [(0, 0, False), (0, 0, True), (-2, -2, False)]
    assert len(set(views(10, 4, flip=True))) == 10
    assert not any(mirrored for *_, mirrored in views(5, 4, flip=False))
    for count, flip in ((0, True), (11, True), (6, False)):
        with pytest.raises(UserError, match=r"--views must be between 1 and (10|5) for these images"):
            views(count, 4, flip=flip)


def test_a_view_is_a_shift_with_black_from_outside() -> None:
    assert torch.equal(show(IMAGES, (0, 0, False)), IMAGES)
    assert torch.equal(show(IMAGES, (0, 0, True)), IMAGES.flip(2))
    moved = show(IMAGES, (1, -2, False))
    assert moved.shape == IMAGES.shape
    assert torch.equal(moved[:, 1:, :2], IMAGES[:, :3, 2:])
    assert not moved[:, 0].any()
    assert not moved[:, :, 2:].any()
    assert torch.equal(show(IMAGES, (-1, 1, True))[:, :3, :3], IMAGES[:, 1:, :3].flip(2))
