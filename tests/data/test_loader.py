"""The interface of data sets, by a second implementation: images that are generated when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.core.data import DataInfo, Normalization
from kdbench.data.augment import FixedAugmentation, show
from kdbench.data.dataset import Batch, Dataset, Loader, ViewBatch
from kdbench.data.resident import ResidentDataset, normalize
from kdbench.data.views import View
from tests.analysis import tiny_probes
from tests.train import tiny_study
from tests.train.tiny_study import CPU


@dataclass(frozen=True)
class GeneratedDataset(Dataset):
    """The images of a resident data set, each made anew when a batch needs it."""

    source: ResidentDataset
    info: DataInfo
    class_names: tuple[str, ...] = tuple("abcd")
    ignored: int = 0

    @property
    def labels(self) -> Tensor:
        return self.source.labels

    @property
    def test_labels(self) -> Tensor:
        return self.source.test_labels

    def loader(self, **arguments: Any) -> Loader:
        return GeneratedLoader(self, **arguments)


class GeneratedLoader:
    def __init__(
        self,
        dataset: GeneratedDataset,
        *,
        batch_size: int,
        pad: int,
        device: torch.device,
        seed: int,
        normalizations: Collection[Normalization] = (),
        limit: int | None = None,
    ) -> None:
        self.dataset, self.batch_size, self.normalizations = dataset, batch_size, normalizations
        self.steps = min(dataset.info.train // batch_size, limit or dataset.info.train)
        arguments: dict[str, Any] = {"pad": pad, "device": device, "seed": seed, "normalizations": normalizations}
        self._reference = dataset.source.loader(batch_size=batch_size, limit=limit, **arguments)
        self.made = 0

    def _pixels(self, test: bool, indices: Tensor) -> Tensor:
        """Generated: nothing but the requested images."""
        self.made += len(indices)
        split = self.dataset.source.test if test else self.dataset.source.train
        return torch.stack([split.stored[index] for index in indices.tolist()])

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        return self._reference.epoch(number, start)

    def view(self, view: View, epoch: int, step: int, base: Batch) -> ViewBatch:
        return self._reference.view(view, epoch, step, base)

    def training_images(self, batch_size: int, augmentation: FixedAugmentation | None = None) -> Iterator[Batch]:
        yield from self._in_order(False, self.dataset.labels, batch_size, augmentation)

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        yield from self._in_order(True, self.dataset.test_labels, batch_size)

    def validation(self, batch_size: int) -> Iterator[Batch]:
        return iter(())

    def _in_order(
        self, test: bool, labels: Tensor, batch_size: int, augmentation: FixedAugmentation | None = None
    ) -> Iterator[Batch]:
        info = self.dataset.info
        for indices in torch.arange(len(labels)).split(batch_size):
            pixels = self._pixels(test, indices)
            if augmentation:
                pixels = show(pixels, augmentation)
            normalized = {key: normalize(pixels, *key) for key in self.normalizations}
            yield Batch(normalize(pixels, info.mean, info.std), labels[indices], indices, normalized)


def generated(source: ResidentDataset) -> GeneratedDataset:
    return GeneratedDataset(source, source.info)


def test_a_cohort_trains_on_generated_images_as_on_resident_ones(tmp_path: Path) -> None:
    together = tiny_study.cohort(tiny_study.trial("kd"), tiny_study.trial("crd"))
    resident = tiny_study.run_cohort(tmp_path / "resident", together)
    made = tiny_study.run_cohort(tmp_path / "generated", together, dataset=generated(tiny_study.DATASET))
    assert len(made) == 2
    for here, there in zip(resident, made, strict=True):
        assert tiny_study.equal(here, there)
        assert here.metrics == there.metrics


@pytest.mark.parametrize("protocol", ["authors", "frozen"])
def test_probes_train_on_generated_images_as_on_resident_ones(tmp_path: Path, protocol: str) -> None:
    probes = [tiny_probes.linear_probe(name=protocol, views=2)]
    (resident,) = tiny_probes.train(probes, tmp_path / "resident")
    (made,) = tiny_probes.train(probes, tmp_path / "generated", generated(tiny_probes.TARGET))
    assert (resident.top1, resident.loss) == (made.top1, made.loss)
    assert made.status == "done"


def test_a_selection_copies_no_images() -> None:
    split = tiny_study.DATASET.train
    part = split.take(torch.tensor([5, 2, 7])).take(torch.tensor([2, 0]))
    assert part.stored.data_ptr() == split.stored.data_ptr()
    assert torch.equal(part.images, split.images[[7, 5]])
    assert torch.equal(part.labels, split.labels[[7, 5]])
    selected = replace(tiny_study.DATASET, train=split.take(torch.arange(64)))
    copied = replace(selected, train=replace(split, stored=split.stored[:64], labels=split.labels[:64]))
    loaders = [data.loader(batch_size=16, pad=1, device=CPU, seed=3) for data in (selected, copied)]
    for here, there in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        assert torch.equal(here.images, there.images)
