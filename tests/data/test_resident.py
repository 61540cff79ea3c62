from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.functional import normalize as torchvision_normalize
from torchvision.transforms.functional import to_tensor

from kdbench.core.errors import UserError
from kdbench.core.seeding import derive_seed
from kdbench.data.dataset import Batch
from kdbench.data.resident import ResidentDataset, ResidentLoader, normalize
from tests.data.build import image_set

CPU = torch.device("cpu")


def loader(images: ResidentDataset, **changes: Any) -> ResidentLoader:
    return ResidentLoader(images, **{"batch_size": 8, "pad": 2, "device": CPU, "seed": 0, **changes})


def pixels(batch: Batch, images: ResidentDataset) -> Tensor:
    """Back to uint8 [B, H, W, 3]."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (images.info.mean, images.info.std))
    return ((batch.images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def epoch(source: ResidentLoader, number: int) -> tuple[Tensor, Tensor, Tensor]:
    batches = list(source.epoch(number))
    return (
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.indices for batch in batches]),
    )


def test_shapes_types_and_layout() -> None:
    batch = next(loader(image_set(20, size=6)).epoch(1))
    assert batch.images.shape == (8, 3, 6, 6)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == batch.indices.shape == (8,)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64


@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_every_crop_is_the_one_of_a_plain_loop(pad: int, flip: bool) -> None:
    images = image_set(43, size=6, flip=flip)
    source = loader(images, pad=pad)
    order, (top, left, flipped) = (draws.tolist() for draws in source._draw_epoch(5))
    assert sorted(order) == list(range(43))
    seen = 0
    for batch in source.epoch(5):
        found = pixels(batch, images).numpy()
        for row in range(8):
            image = images.train.images[order[seen]].numpy()  # [H, W, 3]
            padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            crop = padded[top[seen] : top[seen] + 6, left[seen] : left[seen] + 6]
            expected = crop[:, ::-1] if flipped[seen] else crop
            np.testing.assert_array_equal(found[row], expected)
            assert batch.indices[row] == order[seen]
            assert batch.labels[row] == images.train.labels[order[seen]]
            seen += 1
    assert seen == 40  # the last three are dropped


def test_offsets_and_flips_are_uniform() -> None:
    _, (top, left, flipped) = loader(image_set(9000, size=1, classes=3), pad=1)._draw_epoch(1)
    for offsets in (top, left):
        assert offsets.bincount().tolist() == pytest.approx([3000] * 3, abs=200)  # four and a half deviations
    assert int(flipped.sum()) == pytest.approx(4500, abs=200)
    both = (3 * top + left).bincount(minlength=9)  # the axes are independent
    assert both.tolist() == pytest.approx([1000] * 9, abs=140)


def test_images_that_a_flip_would_change_are_never_flipped() -> None:
    upright, flippable = (loader(image_set(50, flip=flip))._draw_epoch(1) for flip in (False, True))
    assert not upright[1][2].any()
    assert torch.equal(upright[0], flippable[0])
    assert torch.equal(upright[1][:2], flippable[1][:2])


def test_padding_is_black_before_normalisation() -> None:
    images = image_set(8, size=2)
    images.train.images.fill_(255)
    values = next(loader(images, pad=2).epoch(1)).images[:, 0].unique()
    assert_close(values, torch.tensor([(0 - 0.1) / 0.2, (1 - 0.1) / 0.2]))


def test_epochs_are_keyed_by_data_seed_and_number() -> None:
    images = image_set(40)
    first = epoch(loader(images), 3)
    source = loader(images)
    epoch(source, 1)
    torch.manual_seed(99)
    again = epoch(source, 3)  # whatever came before
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    others = [
        epoch(loader(images), 4)[2],
        epoch(loader(images, seed=1), 3)[2],
        epoch(loader(image_set(40, seed=7)), 3)[2],
    ]
    assert all(not torch.equal(first[2], other) for other in others)
    stream = torch.Generator().manual_seed(derive_seed("batches", images.info.content, 0, 3))
    assert torch.equal(first[2], torch.randperm(40, generator=stream))


def test_serving_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    epoch(loader(image_set(40)), 1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_last_incomplete_batch_is_dropped() -> None:
    for count, steps in ((8, 1), (15, 1), (16, 2), (17, 2)):
        source = loader(image_set(count))
        assert source.steps == len(list(source.epoch(1))) == steps
        indices = epoch(source, 1)[2]
        assert len(indices.unique()) == len(indices) == 8 * steps


def test_a_set_smaller_than_a_batch_is_an_error() -> None:
    with pytest.raises(
        UserError, match="noise: the training split has 7 images, less than one batch of 8; take a larger"
    ):
        loader(image_set(7))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_evaluation_keeps_every_test_image_in_order(size: int) -> None:
    images = image_set(20)
    batches = list(loader(images).evaluation(size))
    assert [len(batch.labels) for batch in batches] == [min(size, 7 - start) for start in range(0, 7, size)]
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.test.labels)
    assert torch.equal(torch.cat([pixels(batch, images) for batch in batches]), images.test.images)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_normalising_is_torchvision_s_arithmetic_to_the_bit() -> None:
    images, mean, std = image_set(4).train.images, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = torch.stack([torchvision_normalize(to_tensor(image.numpy()), list(mean), list(std)) for image in images])
    assert torch.equal(normalize(images, mean, std), expected)
    assert torch.equal(normalize(images, torch.tensor(mean), torch.tensor(std)), expected)


def test_normalising_leaves_its_input_alone() -> None:
    images = image_set(4).train.images
    before = images.clone()
    normalize(images, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(images, before)


@pytest.mark.gpu
def test_a_gpu_serves_the_same_batches() -> None:
    images = image_set(40)
    ours, theirs = epoch(loader(images), 2), epoch(loader(images, device=torch.device("cuda")), 2)
    assert_close(theirs[0].cpu(), ours[0])
    assert torch.equal(theirs[1].cpu(), ours[1])
    assert torch.equal(theirs[2].cpu(), ours[2])
