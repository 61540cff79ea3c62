"""The conventional loop, one method a run, as in research training scripts. `compare.py` compares cohorts with it.

A torch DataLoader with worker processes, torchvision's transforms image by image, float32 in NCHW order, eager, the
teacher's forward in every run, loss and both accuracies read after every step. Networks, methods and their losses are
the project's own, so that only the loop differs. Contrastive representation distillation is the exception: its
negatives come from the data set's `__getitem__`, and its loss gathers their memory rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from kdbench.core.trial import Trial, Value
from kdbench.data.resident import ResidentDataset
from kdbench.distill import Batch, Context, Distiller, Output, Requires, Step, registry
from kdbench.distill.memory_bank import initial_memory, smallest_pool
from kdbench.distill.objective import objective
from kdbench.methods.crd import EPS, CRDHyper
from kdbench.models import build, features, info

CONTRASTIVE = "crd"
"""The method whose data set and loss are written here as in the public code."""


def incompatibility(name: str, settings: Mapping[str, Value]) -> str | None:
    """Why this loop cannot train a method, or None: it computes outputs of one batch and nothing else."""
    requires = registry.requirements(name, settings)
    outputs_only = Requires(
        pre_activations=requires.pre_activations,
        min_teachers=requires.min_teachers,
        max_teachers=requires.max_teachers,
    )
    return None if requires == outputs_only else "the conventional loop does not compute what it requires"


@dataclass(frozen=True)
class ContrastiveBatch(Batch):
    """A batch with its negatives."""

    rows: Tensor = field(kw_only=True)
    """int64 [B, 1 + K], rows of the training split: the image itself, then K of other classes."""


class TransformedImages(torch.utils.data.Dataset[tuple[Any, ...]]):
    """The training split image by image: transformed image, label, index; without `pad` the test split as it is."""

    def __init__(self, dataset: ResidentDataset, pad: int | None) -> None:
        split = dataset.test if pad is None else dataset.train
        self.pixels: NDArray[np.uint8] = split.images.numpy()  # [N, H, W, 3]
        self.labels: list[int] = split.labels.tolist()
        augmented = [] if pad is None else [transforms.RandomCrop(dataset.info.size, padding=pad)]
        if pad is not None and dataset.info.flip:
            augmented.append(transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose(
            [
                *augmented,
                transforms.ToTensor(),
                transforms.Normalize(dataset.info.mean, dataset.info.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index], index


class ImagesWithNegatives(TransformedImages):
    """Also draws `k` negatives for each image, with replacement only if there are fewer images of other classes."""

    def __init__(self, dataset: ResidentDataset, pad: int, k: int) -> None:
        super().__init__(dataset, pad)
        labels = np.asarray(self.labels)
        self.k, self.pools = k, [np.flatnonzero(labels != label) for label in range(dataset.info.classes)]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label, _ = super().__getitem__(index)
        pool = self.pools[label]
        negatives = np.random.choice(pool, self.k, replace=self.k > len(pool))
        return image, label, index, np.hstack([[index], negatives])


class GatheredCRD(Distiller[CRDHyper]):
    """Noise-contrastive estimation against two memories of embeddings; the rows to score come with the batch.

    Source: Tian, Krishnan, Isola, arXiv:1910.10699, §3, with the constants of its public code.
    """

    memory_student: Tensor
    memory_teacher: Tensor

    def __init__(self, hyper: CRDHyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.embed_student = nn.Linear(context.student.embedding_dim, hyper.feat_dim)
        self.embed_teacher = nn.Linear(context.teacher.embedding_dim, hyper.feat_dim)
        self.register_buffer("memory_student", initial_memory(len(context.labels), hyper.feat_dim))
        self.register_buffer("memory_teacher", initial_memory(len(context.labels), hyper.feat_dim))
        self.z: dict[str, float] = {}  # normalizers by anchor, constant from the first batch on

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert isinstance(step.batch, ContrastiveBatch)
        self.anchors = (
            F.normalize(self.embed_student(step.student.embedding)),
            F.normalize(self.embed_teacher(step.teacher.embedding)),
        )  # both [B, D]
        student_term = self._nce("student", self.anchors[0], self.memory_teacher, step.batch.rows)
        teacher_term = self._nce("teacher", self.anchors[1], self.memory_student, step.batch.rows)
        return {"nce": self.hyper.crd_weight * (student_term + teacher_term)}

    def _nce(self, name: str, anchor: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        """Binary cross-entropy of telling column 0 from the K noise columns, averaged over B."""
        gathered = memory.index_select(0, rows.flatten()).view(*rows.shape, -1)  # [B, 1 + K, D]
        raw = torch.exp(torch.bmm(gathered, anchor[:, :, None]).squeeze(2) / self.hyper.nce_t)  # [B, 1 + K]
        if name not in self.z:
            self.z[name] = raw.mean().item() * len(memory)
        scores = raw / self.z[name]
        noise = (rows.shape[1] - 1) / len(memory)  # K times the uniform probability of a row
        positive = (scores[:, 0] / (scores[:, 0] + noise + EPS)).log()
        negative = (noise / (scores[:, 1:] + noise + EPS)).log()
        loss: Tensor = -(positive.sum() + negative.sum()) / len(rows)
        return loss

    def after_backward(self, step: Step) -> None:
        indices = step.batch.indices
        for memory, anchor in zip((self.memory_student, self.memory_teacher), self.anchors, strict=True):
            old = memory.index_select(0, indices)
            mixed = self.hyper.nce_m * old + (1 - self.hyper.nce_m) * anchor
            memory.index_copy_(0, indices, F.normalize(mixed))


@dataclass
class Meters:
    """What the loop reads after every step."""

    losses: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)  # %
    top5: list[float] = field(default_factory=list)


class ConventionalTrainer:
    """One student and its method under the conventional loop; vanilla trials have no teachers."""

    def __init__(
        self, trial: Trial, dataset: ResidentDataset, teachers: Sequence[nn.Module], device: torch.device
    ) -> None:
        self.trial, self.dataset, self.teachers, self.device = trial, dataset, teachers, device
        contrastive = trial.base == CONTRASTIVE
        classes, size, recipe = dataset.info.classes, dataset.info.size, trial.recipe
        labels = dataset.train.labels
        student_shapes = features(trial.arch, classes, size)
        teacher_shapes = tuple(features(source.arch, classes, size) for source in trial.teachers)
        hyper: Any = registry.hyper_of(trial.base, trial.settings)
        method: type[Distiller[Any]] = GatheredCRD if contrastive else registry.distiller(trial.base)
        self.pre_activations = method.requires(hyper).pre_activations
        self.network = build(trial.arch, classes, size).to(device)
        context = Context(
            student_shapes,
            teacher_shapes or (student_shapes,),
            classes,
            labels,
            info(trial.arch).family,
            generator=torch.Generator(device),
        )
        self.distiller = method(hyper, context).to(device)
        self.images = TransformedImages(dataset, recipe.pad)
        if contrastive:  # as many negatives as in the cohort
            self.images = ImagesWithNegatives(dataset, recipe.pad, min(hyper.nce_k, smallest_pool(labels)))
        self.optimizer = torch.optim.SGD(
            [*self.network.parameters(), *self.distiller.parameters()],
            lr=trial.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.network.train()
        self.distiller.train()
        self.meters = Meters()

    def step(self, batch: Batch) -> None:
        """One batch through teachers and student, one step of the optimizer."""
        student: Output = self.network(batch.images, pre_activations=self.pre_activations)
        with torch.no_grad():
            teachers = tuple(teacher(batch.images, pre_activations=self.pre_activations) for teacher in self.teachers)
        step = Step(batch, student, teachers, epoch=1, epochs=self.trial.recipe.epochs)
        loss = torch.stack(list(objective(self.distiller, step).values())).sum()
        logits = self.distiller.predict(student)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [B, 5]
        hits = (top5 == batch.labels[:, None]).float() * (100 / len(batch.labels))
        self.meters.losses.append(loss.item())
        self.meters.top1.append(hits[:, 0].sum().item())
        self.meters.top5.append(hits.sum().item())
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.distiller.after_backward(step)
        self.optimizer.step()

    def seconds(self, workers: int, warmup: int, steps: int) -> float:
        """Time `steps` steps after `warmup` steps, in which the worker processes start; they end before this returns.

        Raises ValueError if an epoch has fewer steps.
        """
        loader = self._loader(self.images, workers, training=True)
        for number, fields in enumerate(loader, start=1):
            self._step(fields)
            if number == warmup:
                synchronize(self.device)
                started = time.perf_counter()
            elif number == warmup + steps:
                synchronize(self.device)
                return time.perf_counter() - started
        raise ValueError(f"an epoch of {len(loader)} steps is too short for {warmup} + {steps}")

    def epoch_seconds(self, workers: int, epochs: int, folder: Path) -> list[float]:
        """Time whole epochs after one that is not counted: training, evaluation in batches of half the size, and a
        checkpoint, as the public scripts do.
        """
        training = self._loader(self.images, workers, training=True)
        test = self._loader(TransformedImages(self.dataset, pad=None), workers, training=False)
        times = []
        for _ in range(1 + epochs):
            synchronize(self.device)
            started = time.perf_counter()
            self.network.train()
            for fields in training:
                self._step(fields)
            self._evaluate(test)
            state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / "conventional.pth")
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return times[1:]

    def _loader(self, images: TransformedImages, workers: int, *, training: bool) -> DataLoader[Any]:
        cuda, batch = self.device.type == "cuda", self.trial.recipe.batch_size
        if cuda:  # torch's own defaults, and the one switch that the public scripts turn
            torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cuda.matmul.allow_tf32 = False
        return DataLoader(
            images,
            batch_size=batch if training else batch // 2,
            shuffle=training,
            drop_last=training,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=cuda,
        )

    def _step(self, fields: Sequence[Tensor]) -> None:
        images, labels, indices, *rows = (tensor.to(self.device, non_blocking=True) for tensor in fields)
        self.step(ContrastiveBatch(images, labels, indices, rows=rows[0]) if rows else Batch(images, labels, indices))

    @torch.no_grad()
    def _evaluate(self, loader: DataLoader[Any]) -> float:
        self.network.eval()
        hits = 0
        for images, labels, _ in loader:
            logits = self.network(images.to(self.device, non_blocking=True)).logits
            hits += (logits.argmax(dim=1) == labels.to(self.device, non_blocking=True)).sum().item()
        return 100 * hits / len(self.dataset.test)


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
