"""What travels between the rooms: plain frozen dataclasses, no torch, no behaviour beyond naming.

Words become a `Plan` of `Cohort`s of `Trial`s, and these become `Record`s; what was trained is then the source of
`Transfer`s. See docs/architecture.md.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

PROTOCOL = 1
"""Raised when a change to shared code may move results: records of different protocols are never mixed in a table."""

VANILLA = "vanilla"
"""The method of a network trained on the labels alone: every teacher, and every student's baseline."""

PRETRAINED = ":pretrained"
"""Ends the name of a model that starts from the weights its package offers."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of pixels scaled to [0, 1]."""

Value = bool | int | float | str
Status = Literal["done", "diverged", "failed", "n/a"]
FINAL: frozenset[str] = frozenset({"done", "diverged", "n/a"})
"""Statuses that stand; a `failed` trial runs again."""


class UserError(Exception):
    """Bad input from the user's side. The message is one clear sentence; the command exits with code 2."""


class Interrupted(KeyboardInterrupt):
    """An orderly end that somebody asked for: what was under way has been kept."""


def unknown(kind: str, word: str, known: Iterable[str], where: str) -> UserError:
    """The error for a word that is not on a list: with its nearest match and the place where the list is shown."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return UserError(f"unknown {kind} {word!r}: {hint}{where}")


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str) -> str:
    """A text of unknown origin without what a terminal would obey and a file could not hold."""
    return _CONTROL.sub(" ", text)


def derive_seed(*key: object) -> int:
    """A 63-bit seed from any key, equal on every machine: SHA-256 of the parts' text.

    Every random stream of a study comes from here, so that it depends on what it is for and on nothing else.
    """
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable(words: Iterable[str]) -> str:
    """Words as a part of a file name."""
    return ".".join(re.sub(r"[^A-Za-z0-9+=@_-]+", "-", word).strip("-")[:48] for word in words)


@dataclass(frozen=True)
class DataRequest:
    """Which images, before they are read."""

    source: str  # digits, cifar10, cifar100, folder:PATH, parquet:PATH
    size: int  # images are brought to size x size pixels
    classes: tuple[int, ...] | None = None  # original label numbers to keep, in ascending order
    subset: int | None = None  # training images kept, stratified
    val_fraction: float = 0.0  # of the training images, held out to choose an epoch by
    label_column: str | None = None  # parquet only


@dataclass(frozen=True)
class DataInfo:
    """A data set after selection, without its images."""

    label: str  # how tables name it: `cifar100`, `cifar10[n=10000]`, `parquet:pets[0-9]`
    content: str  # SHA-256 of the selected images and labels of both splits
    classes: int
    train: int  # images
    test: int
    size: int  # pixels a side
    mean: tuple[float, float, float]  # of pixels scaled to [0, 1]
    std: tuple[float, float, float]
    flip: bool  # whether a mirrored image keeps its meaning
    sources: Mapping[str, str] = field(default_factory=dict)  # file name -> SHA-256
    val: int = 0  # images held out from the training split


@dataclass(frozen=True)
class Pair:
    """A teacher and a student architecture."""

    teacher: str
    student: str

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
    lr_light: float  # of MobileNetV2, the ShuffleNets and token models, which diverge at `lr`
    momentum: float
    weight_decay: float
    milestones: tuple[float, ...]  # epochs of this schedule after which the rate drops; real numbers
    decay: float  # factor of each drop
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
        fields = {k: v for k, v in asdict(self).items() if k not in ("name", "label", "lr", "lr_light")}
        return fields if self.max_grad_norm is not None else {k: v for k, v in fields.items() if k != "max_grad_norm"}

    def published(self) -> bool:
        """Whether accuracies may stand beside published ones."""
        return self.label == "paper"


@dataclass(frozen=True)
class Teacher:
    """Where a cohort's teacher comes from: a vanilla trial or a file."""

    arch: str
    trial: str | None = None  # fingerprint of the vanilla trial
    file: str | None = None  # path; not part of any fingerprint
    sha256: str | None = None  # of the file

    @property
    def key(self) -> str:
        return f"file:{self.sha256}" if self.sha256 else f"trial:{self.trial}"


@dataclass(frozen=True)
class Trial:
    """One student to train; the unit of results. `teacher` is None for vanilla trials."""

    data: DataInfo
    recipe: Recipe
    arch: str
    lr: float  # of this architecture under this recipe
    teacher: Teacher | None
    method: str  # canonical expression
    settings: Mapping[str, Value]  # all of them, resolved
    code: str  # hash of the method's code
    seed: int
    precision: str  # `fp32` or `bf16`

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
            "teacher": [self.teacher.arch, self.teacher.key] if self.teacher else None,
            "method": self.method,
            "settings": dict(sorted(self.settings.items())),
            "code": self.code,
            "precision": self.precision,
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """The variant and the seed: equal for trials that must give equal results."""
        return hashlib.sha256(f"{self.variant}/{self.seed}".encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """A file name that a person can read and that ends in the fingerprint."""
        pair = f"{self.teacher.arch}-{self.arch}" if self.teacher else self.arch
        words = [self.data.label, self.recipe_label, pair, self.method, f"s{self.seed}"]
        return f"{_readable(words)}.{self.fingerprint}"


@dataclass(frozen=True)
class Cohort:
    """Trials that share data, recipe, seed and teacher (vanilla trials: none), trained side by side."""

    data: DataInfo
    recipe: Recipe
    seed: int
    precision: str
    teacher: Teacher | None
    trials: tuple[Trial, ...]

    @property
    def title(self) -> str:
        students = ", ".join(dict.fromkeys(trial.arch for trial in self.trials))
        return f"{self.teacher.arch} → {students}" if self.teacher else f"{VANILLA} {students}"

    def only(self, trials: Sequence[Trial]) -> Cohort:
        return replace(self, trials=tuple(trials))


@dataclass(frozen=True)
class Plan:
    """What a request comes to."""

    cohorts: tuple[Cohort, ...]  # to be trained, in this order: teachers come before their students
    done: tuple[Trial, ...]  # their records stand
    verdicts: tuple[tuple[Trial, str], ...]  # n/a without any training, with the reason

    @property
    def waiting(self) -> tuple[Trial, ...]:
        return tuple(trial for cohort in self.cohorts for trial in cohort.trials)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that was asked for."""
        return (*self.done, *self.waiting, *(trial for trial, _ in self.verdicts))


@dataclass(frozen=True)
class Interval:
    """How often training states are kept: after so many epochs, or, where given, once so many minutes have passed."""

    epochs: int = 1
    minutes: float | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of a method, as its dataclass declares it."""

    name: str
    kind: str  # bool, int, float or str
    default: Value
    help: str


@dataclass(frozen=True)
class MethodInfo:
    """A method as the plan and the lists see it."""

    name: str
    paper: str
    summary: str
    core: bool  # part of the paper's family, so of `--methods all`
    settings: tuple[Setting, ...]
    code: str
    module: str
    check: Callable[[Mapping[str, Value]], str | None]  # None, or why these settings cannot be


@dataclass(frozen=True)
class ModelInfo:
    """An architecture as the plan and the lists see it."""

    name: str
    family: str
    light: bool  # trained at Recipe.lr_light
    smallest: int  # smallest input, pixels a side
    statistics: Statistics | None = None  # what its images are normalised with; None: those of the data set


@dataclass(frozen=True)
class Catalogue:
    """All that the plan asks of methods and models, without torch."""

    methods: Mapping[str, MethodInfo]
    model: Callable[[str], ModelInfo]  # raises UserError
    obstacle: Callable[[str, Mapping[str, Value], Pair, DataInfo], str | None]  # why a method cannot serve a pair
    broken: Mapping[str, str] = field(default_factory=dict)  # method files that could not be imported -> why


@dataclass(frozen=True)
class Cost:
    """Of one architecture: seconds an image, measured on the device of the study, and size."""

    train: float  # forward, backward, optimiser step
    forward: float
    size: int = 0  # bytes of its weights


@dataclass(frozen=True)
class Costs:
    """What the estimate of a plan rests on, measured on the device of the study."""

    archs: Mapping[str, Cost]
    methods: Mapping[str, float] = field(default_factory=dict)  # expression -> seconds an image beside its student's
    pretrain: frozenset[str] = frozenset()  # expressions with a stage before the main one
    states: Mapping[str, int] = field(default_factory=dict)  # expression -> bytes that it adds to a training state


@dataclass(frozen=True)
class Epoch:
    """What is known of one student after one epoch."""

    epoch: int  # from 1
    lr: float
    terms: Mapping[str, float]  # mean over the epoch's steps of each weighted term of the loss, `ce` and `kd` included
    top1: float  # %, whole test split
    top5: float
    seconds_own: float  # its forward, loss, backward, step
    seconds_shared: float  # batch and teacher, once a cohort
    val_top1: float | None = None  # %, held-out training images, where there are any


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. `weights` holds tensors and is opaque here."""

    trial: Trial
    status: Status
    reason: str | None = None
    epochs: tuple[Epoch, ...] = ()
    teacher_top1: float | None = None
    facts: Mapping[str, Value] = field(default_factory=dict)  # what the method says of itself, e.g. negatives drawn
    weights: Mapping[str, Any] | None = None
    cost: Mapping[str, Value] = field(default_factory=dict)
    """extra_parameters (trained beside the student), extra_mib (the method's parameters and buffers), peak_mib (of the
    process on its device while the cohort trained), cohort_size (the students that this is the peak of), and split_from
    (how many students memory had no room for at once) where a cohort had to be split."""


@dataclass(frozen=True)
class Record:
    """A trial's result as it is stored, one JSON file each."""

    protocol: int
    trial: Trial
    status: Status
    reason: str | None
    top1: float | None  # %, last epoch: the headline
    top5: float | None
    best_top1: float | None  # best epoch on the test split: optimistic, never a headline
    best_epoch: int | None
    teacher_top1: float | None
    seconds_own: float | None  # a training epoch, median
    seconds_shared: float | None
    facts: Mapping[str, Value]
    environment: Mapping[str, Value]  # versions, device, threads, host
    weights_sha256: str | None
    finished: str  # ISO 8601, UTC
    cost: Mapping[str, Value] = field(default_factory=dict)  # as in Outcome
    last10_top1: float | None = None  # %, mean of the last ten epochs
    validated_top1: float | None = None  # %, test split, of the epoch that was best on the held-out images
    validated_epoch: int | None = None

    @property
    def seconds_per_epoch(self) -> float | None:
        """What this student would cost alone."""
        return (
            None if self.seconds_own is None or self.seconds_shared is None else self.seconds_own + self.seconds_shared
        )


@dataclass(frozen=True)
class Transfer:
    """One linear classifier to train on the frozen trunk of a network that was trained on other images."""

    source: Trial  # whose network it is
    weights: str  # SHA-256 of that network's file
    data: DataInfo  # the target
    recipe: Recipe  # named after its protocol, see plan/protocols.py
    moving: bool  # batch norms work with batch statistics, and their running ones move; images are augmented at random
    views: int  # fixed views of each training image, where nothing moves
    lr: float
    precision: str  # of the trunk

    @property
    def seed(self) -> int:
        return self.source.seed

    @property
    def recipe_label(self) -> str:
        return self.recipe.label + ("" if self.precision == "fp32" else f"+{self.precision}")

    @cached_property
    def fingerprint(self) -> str:
        """Equal for transfers that must give equal results."""
        data = [self.data.content, self.data.mean, self.data.std, self.data.flip]
        key = {
            "protocol": PROTOCOL,
            "source": [self.source.fingerprint, self.weights],
            "data": data,
            "recipe": self.recipe.key,
            "how": [self.moving, self.views, self.lr, self.precision],
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """A file name that a person can read and that ends in the fingerprint."""
        pair = f"{self.source.teacher.arch}-{self.source.arch}" if self.source.teacher else self.source.arch
        words = [self.data.label, self.recipe_label, self.source.data.label, pair, self.source.method, f"s{self.seed}"]
        return f"{_readable(words)}.{self.fingerprint}"


@dataclass(frozen=True)
class TransferRecord:
    """A transfer's result as it is stored, one JSON file each."""

    protocol: int
    transfer: Transfer
    status: Status
    reason: str | None
    top1: float | None  # %, whole test split of the target, after the last epoch
    top5: float | None
    loss: float | None  # mean of the last epoch
    seconds: float | None  # its own part of the time, evaluation included
    environment: Mapping[str, Value]
    finished: str  # ISO 8601, UTC


class Observer(Protocol):
    """Watches a cohort being trained; for progress displays."""

    def cohort(self, cohort: Cohort, number: int, of: int) -> None: ...
    def step(self, cohort: Cohort, epoch: int, step: int, steps: int) -> None: ...  # pretraining: epochs -1, -2, ...
    def epoch(self, cohort: Cohort, epoch: int, latest: Mapping[str, Epoch]) -> None: ...  # trial id -> its epoch
    def outcome(self, outcome: Outcome) -> None: ...
    def waiting(self, trials: int, processes: Sequence[str]) -> None: ...  # that other processes have in hand


class Executor(Protocol):
    """Where cohorts are trained: here and now, or (later) elsewhere."""

    def train(self, cohort: Cohort, teacher: Mapping[str, Any] | None, observer: Observer) -> Iterator[Outcome]:
        """Train the cohort's trials, from their checkpoints on; `teacher` is its state dict unless it is a file."""
        ...
