"""What a method is given: before training a `Context`, and in each step a `Step`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from kdbench.data.dataset import Batch, ViewBatch
from kdbench.data.views import View
from kdbench.models import Classifier, FeatureShapes
from kdbench.models.output import Output

EXTRA_TEACHERS = ("random", "self", "pruned")
"""Frozen networks that a method can ask for beside the pair's teachers. `random`: the first teacher's architecture with
random weights. `self`: the student's architecture, trained on the labels alone with seed 0. `pruned`: the first teacher
without the tenth of its weights that is smallest in magnitude, as in R2KD."""


@dataclass(frozen=True)
class Requires:
    """What a method needs beside logits, feature maps and embeddings; what no method asks for costs nothing.

    A pair that cannot give it is `n/a` for the method. Raises ValueError if a view is named twice, if there is no such
    extra teacher, or if no number of teachers fits.
    """

    views: tuple[View, ...] = ()
    pre_activations: bool = False  # `Output.pre_activations` of both sides
    classifier: bool = False  # `Output.classifier` of both sides, and `Context.teacher_classifier`
    last_map: bool = False  # `Output.last_map` of both sides
    teacher_embeddings: bool = False  # `Context.teacher_embeddings`
    teacher_class_means: bool = False  # `Context.teacher_class_means`
    teacher_batch_norms: bool = False  # `Context.teacher_batch_norms`
    extra_teachers: tuple[str, ...] = ()  # of EXTRA_TEACHERS: `Step.extra`
    min_teachers: int = 1  # 0: the method uses no teacher, and is trained in every pair
    max_teachers: int | None = 1  # None: any number; a method for one teacher is `n/a` in pairs with several

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if len(set(names)) < len(names):
            raise ValueError(f"a method requires a view once, not {', '.join(names)}")
        if unknown := set(self.extra_teachers) - set(EXTRA_TEACHERS):
            raise ValueError(f"there is no extra teacher {', '.join(sorted(unknown))}; there are {EXTRA_TEACHERS}")
        if self.max_teachers is not None and self.min_teachers > self.max_teachers:
            raise ValueError(f"min_teachers={self.min_teachers} is above max_teachers={self.max_teachers}")


@dataclass(frozen=True)
class Shapes:
    """What is known of a pair and its data without any network: for `supports`."""

    student: FeatureShapes
    teachers: tuple[FeatureShapes, ...]  # never empty: vanilla trials have the student's shapes here
    classes: int
    labels: Tensor  # int64 [N], of the training split; row i is the image whose index in a batch is i
    student_family: str = ""  # of the architecture, as `list models` names it

    @property
    def teacher(self) -> FeatureShapes:
        """The (first) teacher's."""
        return self.teachers[0]


@dataclass(frozen=True)
class Context(Shapes):
    """What a method is built from: the shapes, its random generator, and what it requires of the teacher."""

    generator: torch.Generator = field(kw_only=True)
    """For all that is drawn during training; on the training device, seeded anew every epoch."""
    teacher_classifier: Classifier | None = field(default=None, kw_only=True)  # detached
    teacher_embeddings: Tensor | None = field(default=None, kw_only=True)  # [N, D], of images without augmentation
    teacher_class_means: Tensor | None = field(default=None, kw_only=True)  # [C, D], means of these by class
    teacher_batch_norms: tuple[tuple[Tensor, Tensor], ...] | None = field(default=None, kw_only=True)
    """Weight and bias [K] of the batch norm before the last activation of each stage: deviation and mean there."""


@dataclass(frozen=True)
class ViewStep:
    """One view of a step: its images and what both sides make of them."""

    batch: Batch
    student: Output
    teachers: tuple[Output, ...]
    partner: Tensor | None = None  # int64 [B], the row of the batch that is mixed in; mixed views only
    lam: Tensor | None = None  # float32 [B], share of the original image, in [0, 1]; mixed views only

    @property
    def teacher(self) -> Output:
        return self.teachers[0]


class Required(dict[str, Any]):
    """What a method gets on request, by name; a name that it did not require is an error that says so."""

    def __missing__(self, name: str) -> NoReturn:
        raise LookupError(
            f"{name!r} is not among what the method's requires() declares: {', '.join(self) or 'nothing'}"
        )


@dataclass(frozen=True)
class Step:
    """One training step. Outputs are float32 in training and float64 when verified; the teachers' carry no gradient."""

    batch: Batch
    student: Output
    teachers: tuple[Output, ...]  # in the order of the pair
    epoch: int  # from 1
    epochs: int  # of the whole training
    views: Mapping[str, ViewStep] = field(default_factory=dict)  # by name, as required
    extra: Mapping[str, Output] = field(default_factory=dict)  # extra teachers by name, as required

    @property
    def teacher(self) -> Output:
        """The (first) teacher's output."""
        return self.teachers[0]

    def epoch_of(self, total: int) -> float:
        """The epoch on a schedule of `total` epochs: warm-ups and decays of 240-epoch papers read `epoch_of(240)`."""
        return self.epoch * total / self.epochs

    def warm_up(self, epochs: float) -> float:
        """A factor that grows linearly to 1 in so many epochs of 240."""
        return min(self.epoch_of(240) / epochs, 1.0)

    def cosine_decay(self, start: float) -> float:
        """A factor that is 1 until epoch `start` of 240 and then falls along half a cosine to 0."""
        share = (self.epoch_of(240) - start) / (240 - start) if self.epoch_of(240) > start else 0.0
        return (1 + math.cos(math.pi * share)) / 2


__all__ = ["EXTRA_TEACHERS", "Batch", "Context", "Requires", "Shapes", "Step", "View", "ViewBatch", "ViewStep"]
