"""Which records stand behind which row: seeds of one variant are gathered, superseded variants are left out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA, Trial
from kdbench.report import published

TEACHER = "teacher"
"""The method column's word for the teacher's own row."""

PLUS = "+kd"
"""The ending of a method that is trained together with plain distillation."""


@dataclass(frozen=True)
class Group:
    """The seeds of one variant: what one row of a table is computed from."""

    dataset: str
    recipe: str
    teacher: str  # empty where vanilla records are shown without a pair
    student: str
    method: str
    records: tuple[Record, ...]  # in order of their seeds

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """Its row and column; see `Cell.trials`."""
        return self.dataset, self.recipe, self.teacher, self.student, self.method

    @property
    def done(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.status == "done" and record.top1 is not None)

    @property
    def top1(self) -> list[float]:
        return [record.top1 for record in self.done if record.top1 is not None]


@dataclass(frozen=True)
class Selection:
    """All records, sorted into those that are shown and those that are not."""

    groups: tuple[Group, ...]  # in the order of tables
    superseded: tuple[Record, ...]  # a newer variant or protocol, or other data under the same label, took their place
    teachers: tuple[Record, ...]  # vanilla records that serve as teachers only


def table_of(record: Record) -> tuple[str, str]:
    """The table that a record belongs to: (dataset, recipe)."""
    return record.trial.data.label, record.trial.recipe_label


def method_key(method: str) -> tuple[int, str, str, bool]:
    """Teacher, vanilla, plain distillation, then the alphabet, each `+kd` form after its plain form."""
    stem = method.removesuffix(PLUS)
    base = re.split("[(@]", stem, maxsplit=1)[0].lower()
    return {TEACHER: 0, VANILLA: 1, PLUS[1:]: 2}.get(base, 3), base, stem, method != stem


def pair_key(teacher: str, student: str) -> tuple[int, str, str]:
    """The paper's order, then the alphabet, then what has no teacher."""
    order = published.pairs()
    return order.get((teacher, student), len(order) + (not teacher)), teacher, student


def finished(record: Record) -> datetime:
    """When a record was finished; text that is no date counts as the oldest."""
    try:
        moment = datetime.fromisoformat(record.finished)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def conditions(trial: Trial) -> tuple[object, ...]:
    """What a vanilla and a distilled trial must share to stand in one column: data, schedule, rate and precision."""
    data, recipe = trial.data, replace(trial.recipe, name="", label="", lr=0.0, small_lr=0.0)
    return data.content, tuple(data.mean), tuple(data.std), data.flip, recipe, trial.lr, trial.precision


def newest(records: Iterable[Record]) -> Record:
    return max(records, key=lambda record: (finished(record), record.trial.id))


def _chosen(records: Sequence[Record], requested: Collection[str]) -> Trial:
    """The newest trial of a variant that was asked for, else the newest of all."""
    return newest([record for record in records if record.trial.variant in requested] or records).trial


def _current(records: Sequence[Record], requested: Collection[str]) -> tuple[Record, ...]:
    """The seeds of the variant that was asked for, else of the one that was finished last."""
    variant = _chosen(records, requested).variant
    return tuple(sorted((r for r in records if r.trial.variant == variant), key=lambda record: record.trial.seed))


def select(records: Sequence[Record], requested: Collection[str] = ()) -> Selection:
    """Sort records into groups. Within a table only the newest protocol is kept: protocols are never mixed.

    Where a row has several variants, one of `asked` (`Trial.variant`s) is shown, else the one finished last.
    """
    tables: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        tables[table_of(record)].append(record)
    groups: list[Group] = []
    superseded: list[Record] = []
    teachers: list[Record] = []
    for table in sorted(tables):
        protocol = max(record.protocol for record in tables[table])
        mine = [record for record in tables[table] if record.protocol == protocol]
        shown = _groups(table, mine, requested)
        groups += shown
        used = {record.trial.id for group in shown for record in group.records}
        students = {group.student for group in shown}
        teacher_archs = {arch for group in shown for arch in group.teacher.split("+")}
        for record in tables[table]:
            if record.protocol == protocol and record.trial.id in used:
                continue
            arch, vanilla = record.trial.arch, not record.trial.teachers
            only_teacher = vanilla and record.protocol == protocol and arch in teacher_archs and arch not in students
            (teachers if only_teacher else superseded).append(record)
    return Selection(tuple(groups), tuple(superseded), tuple(teachers))


def _teacher_keys(trial: Trial) -> list[str]:
    return [source.key for source in trial.teachers]


def _groups(table: tuple[str, str], records: Sequence[Record], requested: Collection[str]) -> list[Group]:
    pairs_first = [record for record in records if record.trial.teacher] or records
    images = _chosen(pairs_first, requested).data.content  # other images under the same label are another table
    distilled: defaultdict[tuple[str, str, str], list[Record]] = defaultdict(list)
    vanilla: defaultdict[str, list[Record]] = defaultdict(list)
    pupils: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        trial = record.trial
        if trial.data.content != images:
            continue
        if not trial.teachers:
            vanilla[trial.arch].append(record)
        else:
            pupils[trial.teacher, trial.arch].append(record)
    for column, taught in pupils.items():
        keys = _teacher_keys(_chosen(taught, requested))  # a column compares what the same teachers taught
        for record in taught:
            if _teacher_keys(record.trial) == keys:
                distilled[*column, record.trial.method].append(record)
    groups = [Group(*table, *row, _current(of_row, requested)) for row, of_row in distilled.items()]
    pairs = {(group.teacher, group.student) for group in groups}
    for teacher, student in pairs:
        of_pair = [r for group in groups if (group.teacher, group.student) == (teacher, student) for r in group.records]
        wanted = conditions(newest(of_pair).trial)
        fitting = [record for record in vanilla.get(student, ()) if conditions(record.trial) == wanted]
        if fitting:
            groups.append(Group(*table, teacher, student, VANILLA, _current(fitting, requested)))
    in_pairs = {arch for teacher, student in pairs for arch in (*teacher.split("+"), student)}
    groups += [
        Group(*table, "", arch, VANILLA, _current(of, requested))
        for arch, of in vanilla.items()
        if arch not in in_pairs
    ]
    return sorted(groups, key=lambda group: (pair_key(group.teacher, group.student), method_key(group.method)))
