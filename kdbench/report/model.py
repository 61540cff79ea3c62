"""What a table is: typed cells in rows and columns, which renderers draw; and which tables and charts there are.

A file in `tables/` makes one table from the results, a file in `charts/` one chart; being there is all that it takes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kdbench.report.results import StudyResults

MISSING = "–"
TIE = " ≈"

Place = tuple[str, str]  # dataset, recipe
Heading = tuple[str, ...]  # a line each, such as teacher and student


@dataclass(frozen=True)
class Cell:
    """One cell. `text` is all of it in one line; renderers may set its parts apart."""

    value: float | str | None = None  # what it says, and what it is sorted by
    form: str = ".2f"  # of a number
    unit: str = ""
    spread: float | None = None  # ± standard deviation
    interval: tuple[float, float] | None = None
    n: int | None = None
    aside: str = ""  # what else belongs to the value
    status: str = ""  # a word after it, or instead of it
    reason: str = ""  # of the status
    second: str = ""  # a second, smaller line
    best: bool = False  # of its column
    second_best: bool = False
    tied: bool = False  # cannot be told apart from the best
    tip: str = ""  # what a page says when it is pointed at
    trials: tuple[str, ...] = ()  # dataset, recipe, teacher, student and method of the trials behind it

    @property
    def number(self) -> str:
        """The value alone."""
        if self.value is None or self.value != self.value:
            return ""
        return self.value if isinstance(self.value, str) else f"{self.value:{self.form}}{self.unit}"

    @property
    def text(self) -> str:
        """`91.23 ± 0.45 (3), failed`; a word where there is no value."""
        if not self.number:
            return self.status or MISSING
        spread = None if self.spread is None else f"± {self.spread:{self.form}}"
        interval = None if self.interval is None else "[{:+.2f}, {:+.2f}]".format(*self.interval)
        n = None if self.n is None else f"({self.n})"
        words = " ".join(filter(None, (self.number, spread, interval, n, self.aside)))
        return words + (f", {self.status}" if self.status else "") + TIE * (self.tied and not self.best)


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table of one (dataset, recipe)."""

    title: str
    place: Place
    columns: Sequence[Heading]
    rows: Sequence[Row]
    lead: Sequence[str] = ()  # what a reader should know first
    notes: Sequence[str] = ()  # beside those of its sheet
    corner: str = "method"
    parts: Sequence[int] = ()  # columns at which a narrow page begins a new part


@dataclass(frozen=True)
class Sheet:
    """The tables of one kind, and the long form with all of their numbers."""

    title: str
    frame: pd.DataFrame
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    decimals: int = 4  # in the long form


T = TypeVar("T")


@dataclass(frozen=True)
class Registered(Generic[T]):
    """What a file of `tables/` or `charts/` makes. None: these results have nothing of it."""

    name: str  # of its files
    make: T
    order: int
    terminal: bool = False  # whether a command prints it when a study has ended


MakeSheet = Callable[["StudyResults"], "Sheet | None"]
MakeChart = Callable[["StudyResults", Place], "Figure | None"]
S = TypeVar("S", bound=MakeSheet)
_TABLES: dict[str, Registered[MakeSheet]] = {}
_CHARTS: dict[str, Registered[MakeChart]] = {}


def table(name: str, *, order: int, terminal: bool = False) -> Callable[[S], S]:
    """Register a table: `tables/NAME.{csv,md,tex}`, and a place on the page."""

    def register(make: S) -> S:
        _TABLES[name] = Registered(name, make, order, terminal)
        return make

    return register


def chart(name: str, *, order: int) -> Callable[[MakeChart], MakeChart]:
    """Register a chart: `charts/NAME.DATASET.RECIPE.{png,svg}`, and a place on the page.

    It is drawn, and saved, within `style.house_style()`.
    """

    def register(make: MakeChart) -> MakeChart:
        _CHARTS[name] = Registered(name, make, order)
        return make

    return register


def registered_tables() -> list[Registered[MakeSheet]]:
    """In the order in which they are shown."""
    return _found("kdbench.report.tables", _TABLES)


def registered_charts() -> list[Registered[MakeChart]]:
    """In the order in which they are shown."""
    return _found("kdbench.report.charts", _CHARTS)


def _found(package: str, registry: dict[str, Registered[T]]) -> list[Registered[T]]:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return sorted(registry.values(), key=lambda item: item.order)


def by_place(tables: Sequence[Table]) -> Iterator[tuple[Place, list[Table]]]:
    """The tables of each (dataset, recipe), in order."""
    for place in dict.fromkeys(table.place for table in tables):
        yield place, [table for table in tables if table.place == place]
