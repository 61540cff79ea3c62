"""What the plan and the lists know of methods, models and their cost, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.trial import Pair, Value

KINDS = ("logits", "features", "relations", "contrastive", "control")
"""What a method distills; controls have no teacher, or a useless one."""

GROUPS = ("paper", "modern", "control", "adapted", "own")
"""Where a method comes from: the ICD paper's own comparison, later papers, controls, methods whose constants were
chosen here, and methods from outside."""


@dataclass(frozen=True)
class Range:
    """What a search may try for a setting, ends included; `log` spreads its trials evenly over orders of magnitude."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"{self} is not a range")


@dataclass(frozen=True)
class Setting:
    """One setting of a method, as its dataclass declares it."""

    name: str
    kind: str  # bool, int, float or str
    default: Value
    help: str
    range: Range | None = None  # what tuning may search


@dataclass(frozen=True)
class MethodInfo:
    """A method as the plan and the lists see it."""

    name: str
    paper: str
    year: int | None
    kind: str  # of KINDS
    group: str  # of GROUPS; `--methods all` is `paper`
    summary: str
    settings: tuple[Setting, ...]
    code: str
    module: str
    check: Callable[[Mapping[str, Value]], str | None]  # None, or why these settings cannot be
    extra_teachers: Callable[[Mapping[str, Value]], tuple[str, ...]] = lambda settings: ()  # see distill.Requires


@dataclass(frozen=True)
class ModelInfo:
    """An architecture as the plan and the lists see it."""

    name: str
    family: str
    small_lr: bool  # trained at Recipe.small_lr
    smallest: int  # smallest input, pixels a side
    normalization: Normalization | None = None  # what its images are normalized with; None: those of the data set


@dataclass(frozen=True)
class Catalog:
    """All that the plan asks of methods and models, without torch."""

    methods: Mapping[str, MethodInfo]
    model: Callable[[str], ModelInfo]  # raises UserError
    incompatibility: Callable[
        [str, Mapping[str, Value], Pair, DataInfo], str | None
    ]  # why a method cannot serve a pair
    broken: Mapping[str, str] = field(default_factory=dict)  # method files that could not be imported -> why


@dataclass(frozen=True)
class Cost:
    """Of one architecture: seconds an image, measured on the device of the study, and size."""

    train: float  # forward, backward, optimizer step
    forward: float
    size: int = 0  # bytes of its weights


@dataclass(frozen=True)
class Costs:
    """What the estimate of a plan rests on, measured on the device of the study."""

    archs: Mapping[str, Cost]
    methods: Mapping[str, float] = field(default_factory=dict)  # expression -> seconds an image beside its student's
    pretrain: frozenset[str] = frozenset()  # expressions with a stage before the main one
    states: Mapping[str, int] = field(default_factory=dict)  # expression -> bytes that it adds to a training state
