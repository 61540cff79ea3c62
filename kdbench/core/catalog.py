"""What is known of methods and models without importing torch: names, settings, compatibility and measured cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kdbench.core.data import DataInfo, Normalization
from kdbench.core.trial import Pair, Value

KINDS = ("logits", "features", "relations", "contrastive", "control")
"""What a method distills; controls have no teacher, or a useless one."""

GROUPS = ("paper", "modern", "control", "adapted", "own")
"""Where a method comes from: the comparison in the ICD paper, other papers, controls, methods whose constants were
chosen for this benchmark, and methods of its users."""

GROUP_NAMES: Mapping[str, tuple[str, ...]] = {
    "all": ("paper",),
    "modern": ("modern",),
    "controls": ("control",),
    "every": GROUPS,
}
"""What stands for several methods in `--methods`, and the groups that it takes."""


@dataclass(frozen=True)
class Range:
    """The values of a setting that tuning may try, ends included. Raises ValueError for an empty range."""

    low: float
    high: float
    log: bool = False  # sample uniformly in the logarithm

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
    range: Range | None = None  # for tuning


@dataclass(frozen=True)
class Published:
    """The settings that the authors of a method published for single pairs: what `NAME@published` means.

    They were chosen pair by pair, mostly by test accuracy, so their rows are marked and never pose as defaults.
    """

    source: str  # where they are published
    pairs: Mapping[str, Mapping[str, Value]]  # pair -> setting -> value; the other settings keep their defaults
    given: Mapping[str, Value] = field(default_factory=dict)  # for expressions with these settings, such as form=dkd


@dataclass(frozen=True)
class MethodInfo:
    """A method without its code."""

    name: str
    paper: str
    year: int | None
    kind: str  # one of KINDS
    group: str  # one of GROUPS; `--methods all` means `paper`
    summary: str
    settings: tuple[Setting, ...]
    code: str  # hash of the method's code
    module: str
    check: Callable[[Mapping[str, Value]], str | None]  # settings -> None, or why they are invalid
    extra_teachers: Callable[[Mapping[str, Value]], tuple[str, ...]] = lambda settings: ()  # see distill.Requires
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """An architecture without its code."""

    name: str
    family: str
    small_lr: bool  # trained with `Recipe.small_lr`
    smallest: int  # minimum input size, pixels per side
    normalization: Normalization | None = None  # of the input; None: that of the data set


@dataclass(frozen=True)
class Catalog:
    """Everything a plan needs to know of methods and models."""

    methods: Mapping[str, MethodInfo]
    model: Callable[[str], ModelInfo]  # by name; raises UserError
    incompatibility: Callable[[str, Mapping[str, Value], Pair, DataInfo], str | None]
    """(method, settings, pair, data) -> None, or why the method does not apply to the pair."""
    broken: Mapping[str, str] = field(default_factory=dict)  # method file that cannot be imported -> reason


@dataclass(frozen=True)
class Cost:
    """Cost of one architecture, measured on the device of the study."""

    train: float  # seconds per image: forward, backward and optimizer step
    forward: float  # seconds per image
    size: int = 0  # bytes of weights


@dataclass(frozen=True)
class Costs:
    """What the estimate of a plan is based on, measured on the device of the study."""

    archs: Mapping[str, Cost]
    methods: Mapping[str, float] = field(default_factory=dict)  # expression -> seconds per image added to the student's
    pretrained: frozenset[str] = frozenset()  # expressions of methods with a pretraining stage
    checkpoint_bytes: Mapping[str, int] = field(default_factory=dict)  # expression -> bytes added to a checkpoint
