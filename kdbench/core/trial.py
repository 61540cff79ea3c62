"""Trials, and the cohorts and plans that they are gathered in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from kdbench.core.data import DataInfo

PROTOCOL = 1
"""Raised when a change to shared code may move results: records of different protocols are never mixed in a table."""

VANILLA = "vanilla"
"""The method of a network trained on the labels alone: every teacher, and every student's baseline."""

SELF = "self"
"""The extra teacher that is the student's own architecture, trained on the labels alone with seed 0."""

PRETRAINED = ":pretrained"
"""Ends the name of a model that starts from the weights its package offers."""

Value = bool | int | float | str


def readable_name(words: Iterable[str]) -> str:
    """Words as a part of a file name."""
    return ".".join(re.sub(r"[^A-Za-z0-9+=@_-]+", "-", word).strip("-")[:48] for word in words)


@dataclass(frozen=True)
class Pair:
    """One or several teacher architectures, in ascending order, and a student architecture."""

    teachers: tuple[str, ...]
    student: str

    @property
    def teacher(self) -> str:
        """The teachers as tables name them: `resnet32+resnet56`."""
        return "+".join(self.teachers)

    @property
    def archs(self) -> tuple[str, ...]:
        """All architectures of the pair, the student last."""
        return (*self.teachers, self.student)

    def __str__(self) -> str:
        return f"{self.teacher}:{self.student}"


@dataclass(frozen=True)
class Recipe:
    """A training schedule, the same for every method."""

    name: str
    label: str  # `paper`, or `paper@6` when shortened: a partial study never looks like a full one
    epochs: int
    batch_size: int
    lr: float  # of an ordinary network
    small_lr: float  # of MobileNetV2, the ShuffleNets and token models, which diverge at `lr`
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]  # epochs of this schedule after which the rate drops; real numbers
    gamma: float  # factor of each drop
    size: int  # pixels a side
    pad: int  # random crops are drawn from the image padded by this many black pixels
    max_grad_norm: float | None = None  # gradients of a larger norm are scaled down to it

    @property
    def pretraining_epochs(self) -> int:
        """Of methods that have a stage before the main one: 30 of 240, as published."""
        return max(1, round(30 * self.epochs / 240))

    @property
    def key(self) -> dict[str, Any]:
        """What of it decides a result, the rate of the network apart."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("name", "label", "lr", "small_lr")}
        return fields if self.max_grad_norm is not None else {k: v for k, v in fields.items() if k != "max_grad_norm"}

    def published(self) -> bool:
        """Whether accuracies may stand beside published ones."""
        return self.label == "paper"


@dataclass(frozen=True)
class TeacherSource:
    """Where the weights of a teacher come from: a vanilla trial or a file."""

    arch: str
    trial: str | None = None  # fingerprint of the vanilla trial
    file: str | None = None  # path; not part of any fingerprint
    sha256: str | None = None  # of the file

    @property
    def key(self) -> str:
        return f"file:{self.sha256}" if self.sha256 else f"trial:{self.trial}"


@dataclass(frozen=True)
class Trial:
    """One student to train; the unit of results. Vanilla trials have no teachers."""

    data: DataInfo
    recipe: Recipe
    arch: str
    lr: float  # of this architecture under this recipe
    teachers: tuple[TeacherSource, ...]  # in ascending order of their architectures
    method: str  # canonical expression
    settings: Mapping[str, Value]  # all of them, resolved
    code: str  # hash of the method's code
    seed: int
    precision: str  # `fp32` or `bf16`
    extra_teachers: Mapping[str, TeacherSource] = field(default_factory=dict)
    """Trained networks that the method asks for beside its teachers, by the name under which it finds them."""

    @property
    def teacher(self) -> str:
        """The architectures of its teachers as tables name them: `resnet32+resnet56`; empty for vanilla trials."""
        return "+".join(source.arch for source in self.teachers)

    @property
    def pair(self) -> str:
        """`resnet56:resnet20`, or the architecture alone for vanilla trials."""
        return f"{self.teacher}:{self.arch}" if self.teachers else self.arch

    @property
    def base(self) -> str:
        """The method's name without its settings."""
        return re.split(r"[(+]", self.method, maxsplit=1)[0]

    @property
    def recipe_label(self) -> str:
        return self.recipe.label + ("" if self.precision == "fp32" else f"+{self.precision}")

    @cached_property
    def variant(self) -> str:
        """Hash of all that may change the result, the seed apart: seeds of one variant may be averaged, others never.

        Devices, folders, labels and companions are left out.
        """
        key = {
            "protocol": PROTOCOL,
            "data": [self.data.content, self.data.mean, self.data.std, self.data.flip],
            "recipe": self.recipe.key,
            "arch": self.arch,
            "lr": self.lr,
            "teachers": [[source.arch, source.key] for source in self.teachers],
            "method": self.method,
            "settings": dict(sorted(self.settings.items())),
            "code": self.code,
            "precision": self.precision,
        }
        if self.extra_teachers:
            key["extra_teachers"] = {name: source.key for name, source in sorted(self.extra_teachers.items())}
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """The variant and the seed: equal for trials that must give equal results."""
        return hashlib.sha256(f"{self.variant}/{self.seed}".encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """A file name that a person can read and that ends in the fingerprint."""
        return f"{readable_name([self.data.label, self.recipe_label, *self.name_parts])}.{self.fingerprint}"

    @property
    def name_parts(self) -> tuple[str, str, str]:
        """Pair, method and seed, for names of files."""
        return self.pair.replace(":", "-"), self.method, f"s{self.seed}"


@dataclass(frozen=True)
class Cohort:
    """Trials that share data, recipe, seed and teachers (vanilla trials: none), trained side by side."""

    data: DataInfo
    recipe: Recipe
    seed: int
    precision: str
    teachers: tuple[TeacherSource, ...]
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        students = ", ".join(dict.fromkeys(trial.arch for trial in self.trials))
        teachers = " + ".join(source.arch for source in self.teachers)
        return f"{teachers} → {students}" if teachers else f"{VANILLA} {students}"

    @property
    def sources(self) -> dict[str, TeacherSource]:
        """Every trained network that the cohort needs, by its key."""
        extra = (source for trial in self.trials for source in trial.extra_teachers.values())
        return {source.key: source for source in (*self.teachers, *extra)}

    def with_trials(self, trials: Sequence[Trial]) -> Cohort:
        return replace(self, trials=tuple(trials))


@dataclass(frozen=True)
class Plan:
    """What a request comes to."""

    cohorts: tuple[Cohort, ...]  # to be trained, in this order: teachers come before their students
    completed: tuple[Trial, ...]  # their records stand
    not_applicable: tuple[tuple[Trial, str], ...]  # n/a without any training, with the reason

    @property
    def pending(self) -> tuple[Trial, ...]:
        return tuple(trial for cohort in self.cohorts for trial in cohort.trials)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that was asked for."""
        return (*self.completed, *self.pending, *(trial for trial, _ in self.not_applicable))


@dataclass(frozen=True)
class CheckpointInterval:
    """How often training states are kept: after so many epochs, or, where given, once so many minutes have passed."""

    epochs: int = 1
    minutes: float | None = None
