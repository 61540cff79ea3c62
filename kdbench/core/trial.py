"""Trials, and the cohorts and plans that group them.

A trial is one student to train: data, pair, method, recipe and seed. Vanilla trials, which have no teacher, serve as
teachers and as baselines. A cohort is the trials that share data, recipe, seed and teachers; it is trained together. A
plan is what a study comes to: the cohorts to train and the trials that are already settled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kdbench.core.checkpoint import CheckpointInterval as CheckpointInterval
from kdbench.core.data import DataInfo
from kdbench.core.recipe import Recipe as Recipe

PROTOCOL = 2
"""Increased when a change to shared code may change results. Tables never mix records of different protocols."""

VANILLA = "vanilla"
"""The method that trains on the labels alone; it gives the teachers and the students' baselines."""

SELF = "self"
"""The extra teacher with the architecture of the student, trained on the labels alone with seed 0."""

PRETRAINED = ":pretrained"
"""Suffix of the name of a model that starts from the pretrained weights of its package."""

PUBLISHED = "@published"
"""Suffix of a method with the settings that its authors published for the pair."""

Value = bool | int | float | str
"""The type of a setting."""


def readable_name(parts: Iterable[str]) -> str:
    """The parts joined by dots, shortened and stripped of characters that a file name should not have."""
    return ".".join(re.sub(r"[^A-Za-z0-9+=@_-]+", "-", part).strip("-")[:48] for part in parts)


@dataclass(frozen=True)
class Pair:
    """One or several teacher architectures and a student architecture."""

    teachers: tuple[str, ...]  # in ascending order
    student: str

    @property
    def teacher(self) -> str:
        """The teachers as tables name them, such as `resnet32+resnet56`."""
        return "+".join(self.teachers)

    @property
    def archs(self) -> tuple[str, ...]:
        """All architectures of the pair, the student last."""
        return (*self.teachers, self.student)

    def __str__(self) -> str:
        return f"{self.teacher}:{self.student}"


@dataclass(frozen=True)
class TeacherSource:
    """Where the weights of a teacher come from: a vanilla trial, or a file (`file` and `sha256`)."""

    arch: str
    trial: str | None = None  # fingerprint of the vanilla trial
    file: str | None = None  # path; not part of any fingerprint
    sha256: str | None = None  # of the file

    @property
    def key(self) -> str:
        """The identity of the weights, as it enters fingerprints."""
        return f"file:{self.sha256}" if self.sha256 else f"trial:{self.trial}"


@dataclass(frozen=True)
class Trial:
    """One student to train; the unit of results."""

    data: DataInfo
    recipe: Recipe
    arch: str
    lr: float  # initial learning rate, `lr` or `small_lr` of the recipe
    teachers: tuple[TeacherSource, ...]  # in ascending order of their architectures; none: a vanilla trial
    method: str  # canonical expression
    base: str  # the method's name, without its settings
    settings: Mapping[str, Value]  # all settings of the method, defaults included
    code: str  # hash of the method's code
    seed: int
    precision: str  # `fp32` or `bf16`
    extra_teachers: Mapping[str, TeacherSource] = field(default_factory=dict)
    """Further trained networks that the method requires, by the name it gives them."""
    stream: str = ""
    """The expression that names the method's random streams, if that is not `method`: equal settings draw alike."""
    kind: str = ""
    """What the method distills, one of `catalog.KINDS`, for reports; empty in older records."""
    changed: tuple[str, ...] | None = None
    """Settings that differ from the method's defaults, for reports; None in older records."""

    @property
    def teacher(self) -> str:
        """The teachers as tables name them, such as `resnet32+resnet56`; empty for vanilla trials."""
        return "+".join(source.arch for source in self.teachers)

    @property
    def pair(self) -> str:
        """`resnet56:resnet20`, or the architecture alone for vanilla trials."""
        return f"{self.teacher}:{self.arch}" if self.teachers else self.arch

    @property
    def recipe_label(self) -> str:
        """The recipe as tables name it, with a precision other than fp32."""
        return self.recipe.label + ("" if self.precision == "fp32" else f"+{self.precision}")

    @cached_property
    def variant(self) -> str:
        """Hash of everything but the seed that may change the result: only trials of one variant may be averaged.

        The device, folders, labels and the other trials of the cohort do not enter it.
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
        """Hash of the variant and the seed: equal for trials that must give equal results."""
        return hashlib.sha256(f"{self.variant}/{self.seed}".encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """A readable file name that ends in the fingerprint."""
        return f"{readable_name([self.data.label, self.recipe_label, *self.name_parts])}.{self.fingerprint}"

    @property
    def name_parts(self) -> tuple[str, str, str]:
        """Pair, method and seed, for file names."""
        return self.pair.replace(":", "-"), self.method, f"s{self.seed}"


@dataclass(frozen=True)
class Cohort:
    """Trials that share data, recipe, seed and teachers (vanilla trials: none), trained in lockstep."""

    data: DataInfo
    recipe: Recipe
    seed: int
    precision: str
    teachers: tuple[TeacherSource, ...]
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        """Teachers and students in one line, for progress displays."""
        students = ", ".join(dict.fromkeys(trial.arch for trial in self.trials))
        teachers = " + ".join(source.arch for source in self.teachers)
        return f"{teachers} → {students}" if teachers else f"{VANILLA} {students}"

    @property
    def sources(self) -> dict[str, TeacherSource]:
        """Every trained network that the cohort needs, extra teachers included, by its key."""
        extra = (source for trial in self.trials for source in trial.extra_teachers.values())
        return {source.key: source for source in (*self.teachers, *extra)}

    def with_trials(self, trials: Sequence[Trial]) -> Cohort:
        """The cohort with other trials."""
        return replace(self, trials=tuple(trials))


@dataclass(frozen=True)
class Plan:
    """All trials of a study, by what is to be done with them."""

    cohorts: tuple[Cohort, ...]  # to train, in this order: teachers come before their students
    completed: tuple[Trial, ...]  # have a record
    not_applicable: tuple[tuple[Trial, str], ...]  # are n/a without training, with the reason

    @property
    def pending(self) -> tuple[Trial, ...]:
        """The trials of all cohorts, in order."""
        return tuple(trial for cohort in self.cohorts for trial in cohort.trials)

    @property
    def teachers(self) -> frozenset[str]:
        """Fingerprints of the vanilla trials whose weights the cohorts need."""
        sources = (source for cohort in self.cohorts for source in cohort.sources.values())
        return frozenset(source.trial for source in sources if source.trial)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, whatever their status."""
        return (*self.completed, *self.pending, *(trial for trial, _ in self.not_applicable))
