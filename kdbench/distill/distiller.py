"""The base class of all methods and of their settings."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from kdbench.distill.step import Context, Requires, Shapes, Step
from kdbench.models import classifier_of
from kdbench.models.output import Output


@dataclass(frozen=True)
class Hyper:
    """The settings that every method has. A method's own dataclass inherits them and adds its own.

    The objective is `ce_weight * CE + kd_weight * KD(kd_temperature)` plus the method's own terms.
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

    def require_choice(self, name: str, choices: Collection[str]) -> None:
        """For the `__post_init__` of methods: this setting must be one of the choices."""
        if getattr(self, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class Pretraining:
    """A stage before the main one: 30 epochs of 240 at a constant rate, with the recipe's optimizer.

    The published scripts have such a stage for the methods that learn from feature maps first.
    """

    student: bool = False  # whether to train all of the student that its last feature map depends on
    modules: tuple[nn.Module, ...] = ()  # modules of the method that are trained
    lr: float | None = None  # None: the student's own


H = TypeVar("H", bound=Hyper)


class Distiller(nn.Module, Generic[H]):
    """Base class of all methods. Its parameters are optimized with the student's; its buffers are part of checkpoints.

    Parameters with `requires_grad=False` are kept as they are.

    A method overrides what it needs: usually `losses`, and `__init__` where it has modules of its own.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    hyper_type: ClassVar[type[Hyper]]

    def __init__(self, hyper: H, context: Context) -> None:
        """Modules may be initialized from torch's global generator: it is seeded from method, pair and seed."""
        super().__init__()
        self.hyper = hyper
        self.generator = context.generator

    @classmethod
    def requires(cls, hyper: H) -> Requires:
        """What these settings need beside logits, feature maps and embeddings."""
        return Requires()

    @classmethod
    def supports(cls, hyper: H, shapes: Shapes) -> str | None:
        """None, or the reason why this method cannot train this pair: it is then `n/a` without any training.

        What `requires` names has been checked before.
        """
        return None

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The method's own terms: name -> scalar, already multiplied by its weight.

        Keep the outputs' dtype. Buffers must not be changed here, since backward may still need them: see
        `after_backward`.
        """
        return {}

    def after_backward(self, step: Step) -> None:
        """Update memories and schedules, in place: called after each backward pass, without gradient tracking."""

    def predict(self, student: Output) -> Tensor:
        """The student's logits [B, C]: they enter CE and KD, are evaluated, and are what is deployed.

        A method that replaces the student's classifier overrides this.
        """
        return student.logits

    def deploy(self, network: nn.Module) -> nn.Module:
        """What is kept and exported of a trained student: images -> logits or `Output`.

        The network itself, unless `predict` is overridden: then the network and this method. A method whose prediction
        needs a part of its modules only overrides this.
        """
        return network if type(self).predict is Distiller.predict else Deployment(network, self)

    def pretraining(self) -> Pretraining | None:
        """The stage before the main one, if there is one."""
        return None

    def pretraining_losses(self, step: Step) -> dict[str, Tensor]:
        """The terms of that stage, as in `losses`; no other term is added to them."""
        raise NotImplementedError(f"{type(self).__name__} declares a pretraining and not its losses")

    def extra_info(self) -> dict[str, bool | int | float | str]:
        """What a reader of the record should know beyond the settings, e.g. how many negatives the data allowed."""
        return {}


class Deployment(nn.Module):
    """A trained student with the method that makes its predictions; the method's modules are under `deploy`."""

    def __init__(self, network: nn.Module, distiller: Distiller[Any]) -> None:
        super().__init__()
        self.network, self.deploy = network, distiller

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        output: Output = self.network(images)
        return self.deploy.predict(replace(output, classifier=classifier_of(self.network)))
