"""Synthetic records for the report's tests."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp

import pandas as pd
from rich.console import Console

from kdbench.core.data import DataInfo, DataRequest
from kdbench.core.record import EpochMetrics, Record, Status
from kdbench.core.trial import PROTOCOL, VANILLA, Recipe, TeacherSource, Trial, Value
from kdbench.report.model import Cell, Sheet, Table
from kdbench.report.renderers.terminal import render

CIFAR100 = DataInfo("cifar100", "c" * 64, 100, 50000, 10000, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), True)
CIFAR10 = replace(CIFAR100, label="cifar10", content="d" * 64, classes=10)
PART = replace(
    CIFAR100,
    label="cifar100[n=1000]",
    content="e" * 64,
    train=1000,
    request=DataRequest("cifar100", 32, subset=1000),
)
PAPER = Recipe("paper", "paper", 240, 64, 0.05, 0.01, 0.9, 5e-4, (150.0, 180.0, 210.0), 0.1, 32, 4)
SHORT = replace(PAPER, label="paper@6", epochs=6, milestones=(3.75, 4.5, 5.25))
PAIR = ("resnet56", "resnet20")


def trained(
    method: str = VANILLA,
    top1: float | None = 70.0,
    seed: int = 0,
    *,
    pair: tuple[str, str] = PAIR,
    data: DataInfo = CIFAR100,
    recipe: Recipe = PAPER,
    status: Status = "done",
    reason: str | None = None,
    teacher_top1: float | None = 72.5,
    teachers: tuple[TeacherSource, ...] = (),
    code: str = "code",
    lr: float = 0.05,
    precision: str = "fp32",
    protocol: int = PROTOCOL,
    environment: dict[str, Value] | None = None,
    finished: str = "2026-01-01T00:00:00Z",
    own: float = 1.5,
    cost: dict[str, Value] | None = None,
    settings: dict[str, Value] | None = None,
    kind: str = "",
    changed: tuple[str, ...] | None = None,
) -> Record:
    """One record; vanilla ones train the pair's second architecture without its first."""
    sources = teachers or tuple(TeacherSource(arch, trial=f"vanilla-{arch}") for arch in pair[0].split("+"))
    trial = Trial(
        data,
        recipe,
        pair[1],
        lr,
        () if method == VANILLA else sources,
        method,
        method.partition("(")[0].removesuffix("+kd"),
        settings or {"ce_weight": 1.0},
        code,
        seed,
        precision,
        kind=kind,
        changed=changed,
    )
    value = top1 if status == "done" else None
    known = value is not None
    return Record(
        protocol=protocol,
        trial=trial,
        status=status,
        reason=reason,
        top1=value,
        top5=min(100.0, value + 20) if value is not None else None,
        best_top1=min(100.0, value + 0.5) if value is not None else None,
        best_epoch=recipe.epochs - 1 if known else None,
        teacher_top1=None if method == VANILLA or status == "n/a" else teacher_top1,
        student_seconds=own if known else None,
        shared_seconds=1.0 if known else None,
        extra_info={},
        environment=environment or ({} if status == "n/a" else {"torch": "2.11.0", "device": "cpu", "threads": 2}),
        weights_sha256="f" * 64 if known else None,
        finished=finished,
        cost=cost or {},
    )


def epochs(last: float, count: int = 12) -> tuple[EpochMetrics, ...]:
    """A curve that rises towards `last` and ends there."""
    lifts = [1 - exp(-4 * (number + 1) / count) for number in range(count)]
    return tuple(
        EpochMetrics(n, 0.05, {"ce": 1.0}, last * lift / lifts[-1], 90.0, 1.5, 1.0) for n, lift in enumerate(lifts, 1)
    )


def study(
    methods: Sequence[str], pairs: Sequence[tuple[str, str]], seeds: int = 3, recipe: Recipe = PAPER
) -> list[Record]:
    """A whole study with plausible, reproducible numbers: shared vanilla trials, then every method in every pair."""
    records = [
        trained(VANILLA, 68 + 0.3 * seed + len(student) % 5, seed, pair=("", student), recipe=recipe)
        for student in dict.fromkeys(student for _, student in pairs)
        for seed in range(seeds)
    ]
    for number, pair in enumerate(pairs):
        for place, method in enumerate(methods):
            for seed in range(seeds):
                top1 = 69 + len(pair[1]) % 5 + (place * 7 + number * 3) % 11 * 0.3 + (seed * 5 + place) % 7 * 0.1
                records.append(trained(method, top1, seed, pair=pair, recipe=recipe, teacher_top1=74.0 + number % 4))
    return records


def texts(table: Table, text: Callable[[Cell], str] = lambda cell: cell.text) -> pd.DataFrame:
    """What a table shows, by its labels."""
    columns = {
        " → ".join(heading): [text(row.cells[place]) for row in table.rows]
        for place, heading in enumerate(table.columns)
    }
    return pd.DataFrame(columns, index=[row.label for row in table.rows], dtype="object")


def printed(sheet: Sheet, width: int = 100) -> str:
    """A sheet in a terminal without colors."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    for part in render(sheet, width):
        console.print(part)
    return file.getvalue()
