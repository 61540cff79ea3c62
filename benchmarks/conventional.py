"""The conventional loop: one method a run, as researchers' training scripts have it. What `compare.py` compares with.

A torch DataLoader with worker processes, torchvision's transforms image by image, float32 in NCHW order, eager, the
teacher's forward in every run, the loss and both accuracies read after every step. Networks, methods and their losses
are the project's own, so that only the loop differs; contrastive representation distillation is the exception: its
negatives come from the data set's `__getitem__`, and its loss gathers their memory rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kdbench.methods.crd import EPS, CRDHyper
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdbench.core.trial import Trial
from kdbench.data.dataset import Dataset
from kdbench.distill import Batch, Distiller, Output, Shapes, initial_memory, registry, smallest_pool
from kdbench.distill.objective import objective
from kdbench.models import build, features, info

CONTRASTIVE = "crd"
"""The method whose data set and loss are written here as the public code has them."""


@dataclass(frozen=True)
class Contrasted(Batch):
    """A batch that brings its negatives along."""

    rows: Tensor = field(
        kw_only=True
    )  # int64 [B, 1 + K], rows of the training split: the image itself, then K of other classes


class Photographs(Dataset[tuple[Any, ...]]):
    """The training split image by image: transformed image, label, index."""

    def __init__(self, images: Dataset, pad: int) -> None:
        self.pixels: NDArray[np.uint8] = images.train.images.numpy()  # [N, H, W, 3]
        self.labels: list[int] = images.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.info.size, padding=pad),
                *([transforms.RandomHorizontalFlip()] if images.info.flip else []),
                transforms.ToTensor(),
                transforms.Normalize(images.info.mean, images.info.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index], index


class ContrastedPhotographs(Photographs):
    """Draws an image's negatives with it: with replacement only where there are less than `k` images to draw from."""

    def __init__(self, images: Dataset, pad: int, k: int) -> None:
        super().__init__(images, pad)
        labels = np.asarray(self.labels)
        self.k, self.pools = k, [np.flatnonzero(labels != label) for label in range(images.info.classes)]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label, _ = super().__getitem__(index)
        pool = self.pools[label]
        drawn = np.random.choice(pool, self.k, replace=self.k > len(pool))
        return image, label, index, np.hstack([[index], drawn])


class Contrast(Distiller[CRDHyper]):
    """Noise-contrastive estimation against two memories of embeddings; the rows to score come with the batch.

    Source: Tian, Krishnan, Isola, arXiv:1910.10699, §3, with the constants of its public code.
    """

    memory_student: Tensor
    memory_teacher: Tensor

    def __init__(self, hyper: CRDHyper, shapes: Shapes, generator: torch.Generator) -> None:
        super().__init__(hyper, shapes, generator)
        self.embed_student = nn.Linear(shapes.student.embedding, hyper.feat_dim)
        self.embed_teacher = nn.Linear(shapes.teacher.embedding, hyper.feat_dim)
        self.register_buffer("memory_student", initial_memory(len(shapes.labels), hyper.feat_dim))
        self.register_buffer("memory_teacher", initial_memory(len(shapes.labels), hyper.feat_dim))
        self.z: dict[str, float] = {}  # normalisers by anchor, constant from the first batch on

    def losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        assert isinstance(batch, Contrasted)
        self.anchors = (
            F.normalize(self.embed_student(student.embedding)),
            F.normalize(self.embed_teacher(teacher.embedding)),
        )  # [B, D] each
        by_student = self._estimate("student", self.anchors[0], self.memory_teacher, batch.rows)
        by_teacher = self._estimate("teacher", self.anchors[1], self.memory_student, batch.rows)
        return {"nce": self.hyper.crd_weight * (by_student + by_teacher)}

    def _estimate(self, name: str, anchor: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        """Binary cross-entropy of telling column 0 from the K noise columns, averaged over B."""
        gathered = memory.index_select(0, rows.flatten()).view(*rows.shape, -1)  # [B, 1 + K, D]
        raw = torch.exp(torch.bmm(gathered, anchor[:, :, None]).squeeze(2) / self.hyper.nce_t)  # [B, 1 + K]
        if name not in self.z:
            self.z[name] = raw.mean().item() * len(memory)
        score = raw / self.z[name]
        noise = (rows.shape[1] - 1) / len(memory)  # K times the uniform probability of a row
        own = (score[:, 0] / (score[:, 0] + noise + EPS)).log()
        others = (noise / (score[:, 1:] + noise + EPS)).log()
        loss: Tensor = -(own.sum() + others.sum()) / len(rows)
        return loss

    def after_backward(self, batch: Batch) -> None:
        for memory, anchor in zip((self.memory_student, self.memory_teacher), self.anchors, strict=True):
            old = memory.index_select(0, batch.indices)
            mixed = self.hyper.nce_m * old + (1 - self.hyper.nce_m) * anchor
            memory.index_copy_(0, batch.indices, F.normalize(mixed))


@dataclass
class Meters:
    """What the loop reads after every step."""

    losses: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)  # %
    top5: list[float] = field(default_factory=list)


class Run:
    """One student and its method under the conventional loop."""

    def __init__(self, trial: Trial, images: Dataset, guide: nn.Module | None, device: torch.device) -> None:
        self.trial, self.images, self.guide, self.device = trial, images, guide, device
        contrastive = trial.base == CONTRASTIVE
        classes, size, recipe = images.info.classes, images.info.size, trial.recipe
        own = features(trial.arch, classes, size)
        seen = features(trial.teacher.arch, classes, size) if trial.teacher else own
        shapes = Shapes(own, seen, classes, images.train.labels, info(trial.arch).family)
        hyper: Any = registry.hyper_of(trial.base, trial.settings)
        kind: type[Distiller[Any]] = Contrast if contrastive else registry.distiller(trial.base)
        self.network = build(trial.arch, classes, size).to(device)
        self.method = kind(hyper, shapes, torch.Generator(device)).to(device)
        self.photographs = Photographs(images, recipe.pad)
        if contrastive:  # as many negatives as the cohort draws
            self.photographs = ContrastedPhotographs(images, recipe.pad, min(hyper.nce_k, smallest_pool(shapes)))
        self.optimizer = torch.optim.SGD(
            [*self.network.parameters(), *self.method.parameters()],
            lr=trial.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.network.train()
        self.method.train()
        self.meters = Meters()

    def step(self, batch: Batch) -> None:
        """One batch through teacher and student, one step of the optimizer."""
        output: Output = self.network(batch.images, pre_activations=self.method.pre_activations)
        if self.guide is None:
            nothing = batch.images.new_empty(0)
            target = Output(nothing, (), nothing)
        else:
            with torch.no_grad():
                target = self.guide(batch.images, pre_activations=self.method.pre_activations)
        terms = objective(self.method, output, target, batch, epoch=1)
        loss = torch.stack(list(terms.values())).sum()
        best = output.logits.topk(min(5, output.logits.shape[1]), dim=1).indices  # [B, 5]
        hits = (best == batch.labels[:, None]).float() * (100 / len(batch.labels))
        self.meters.losses.append(loss.item())
        self.meters.top1.append(hits[:, 0].sum().item())
        self.meters.top5.append(hits.sum().item())
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.method.after_backward(batch)
        self.optimizer.step()

    def seconds(self, workers: int, warmup: int, steps: int) -> float:
        """The time of `steps` steps after `warmup` others, in which the worker processes have started; they end here.

        Raises ValueError if an epoch has less steps.
        """
        cuda = self.device.type == "cuda"
        if cuda:  # torch's own defaults, and the one switch that the public scripts turn
            torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cuda.matmul.allow_tf32 = False
        loader: DataLoader[Any] = DataLoader(
            self.photographs,
            batch_size=self.trial.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=cuda,
        )
        for number, fields in enumerate(loader, start=1):
            images, labels, indices, *rows = (each.to(self.device, non_blocking=True) for each in fields)
            self.step(Contrasted(images, labels, indices, rows=rows[0]) if rows else Batch(images, labels, indices))
            if number == warmup:
                wait(self.device)
                started = time.perf_counter()
            elif number == warmup + steps:
                wait(self.device)
                return time.perf_counter() - started
        raise ValueError(f"an epoch of {len(loader)} steps is too short for {warmup} + {steps}")


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
