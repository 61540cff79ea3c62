"""What a distillation method is to the harness."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from kdbench.data.resident import Batch
from kdbench.models import FeatureShapes
from kdbench.models.output import Output


@dataclass(frozen=True)
class Hyper:
    """The settings that every method has. A method's own dataclass inherits them and adds its own.

    The harness computes `ce_weight * CE + kd_weight * KD(kd_temperature)` and adds the method's terms.
    """

    ce_weight: Annotated[float, "weight of the cross-entropy with the labels"] = 1.0
    kd_weight: Annotated[float, "weight of the KL divergence to the teacher's softened class probabilities"] = 0.0
    kd_temperature: Annotated[float, "temperature that softens both sides of that divergence"] = 4.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{item.name} must be a finite number, not {value}")
            if item.name.endswith("_weight") and value < 0:
                raise ValueError(f"{item.name} must not be negative, got {value}")
        if self.kd_temperature <= 0:
            raise ValueError(f"kd_temperature must be above 0, got {self.kd_temperature}")

    def require_positive(self, *names: str) -> None:
        """For the `__post_init__` of methods: these settings must be above 0."""
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Shapes:
    """What a method knows before the first batch."""

    student: FeatureShapes
    teacher: FeatureShapes
    classes: int
    labels: Tensor  # [N] int64, of the training split; row i is the image whose index in a batch is i
    student_family: str = ""  # of the architecture, as `list models` names it


@dataclass(frozen=True)
class Pretraining:
    """A stage of its own before the main one: 30 epochs of 240 at a constant rate, with the recipe's optimizer.

    The published scripts have such a stage for the methods that learn from maps first.
    """

    student: bool = False  # whether all of the student that its last map depends on is trained: not the classifier
    modules: tuple[nn.Module, ...] = ()  # helper modules that are trained
    lr: float | None = None  # None: the student's own


H = TypeVar("H", bound=Hyper)


class Distiller(nn.Module, Generic[H]):
    """Base class of all methods. Its parameters are optimized with the student's; its buffers are part of checkpoints.

    A method overrides what it needs: usually `losses`, and `__init__` where it has helper modules.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    hyper_type: ClassVar[type[Hyper]]
    pre_activations: ClassVar[bool] = False
    """Whether `Output.pre_activations` are needed (of student and teacher)."""

    def __init__(self, hyper: H, shapes: Shapes, generator: torch.Generator) -> None:
        """Helper modules may use torch's global generator here: the harness seeds it from method, pair and seed.

        Args:
            generator: for all that is drawn during training; lives on the training device, seeded anew every epoch.
        """
        super().__init__()
        self.hyper = hyper
        self.generator = generator

    @classmethod
    def supports(cls, hyper: H, shapes: Shapes) -> str | None:
        """None, or the reason why this method cannot train this pair: its cells then say `n/a` before any training."""
        return None

    def losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The method's own terms: name -> scalar, already multiplied by their weights.

        Outputs are float32 in training and float64 when verified: keep the dtype. The teacher's carry no gradient.
        `epoch` counts from 1. Buffers must not be changed here (backward may still need them): see `after_backward`.
        """
        return {}

    def after_backward(self, batch: Batch) -> None:
        """Called once a step after the gradients are there, without gradient tracking: update memories here."""

    def pretraining(self) -> Pretraining | None:
        """The stage before the main one, if there is one."""
        return None

    def pretraining_losses(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms of that stage, as in `losses`; no other term is added to them."""
        raise NotImplementedError(f"{type(self).__name__} declares a pretraining and not its losses")

    def extra_info(self) -> dict[str, bool | int | float | str]:
        """What a reader of the record should know beyond the settings, e.g. how many negatives the data allowed."""
        return {}
