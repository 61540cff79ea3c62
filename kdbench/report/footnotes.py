"""The footnotes of the accuracy tables: everything a reader must know besides the cells, as plain sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.core.record import Record
from kdbench.core.trial import PUBLISHED, Trial
from kdbench.report import published
from kdbench.report.epoch_rules import RULES
from kdbench.report.groups import TEACHER, Group, finished, table_of
from kdbench.report.scores import ROW_LABELS, WORST, by_pair, listed, one_line, pair_label, seed_list

if TYPE_CHECKING:
    from kdbench.report.results import StudyResults


def footnotes(results: StudyResults) -> list[str]:
    """All that a reader must know beside the cells, as plain sentences."""
    records, selection, rows, rule = results.records, results.selection, results.scores, results.rule
    if not records:
        return []
    notes = [
        f"Cells: top-1 accuracy (%) on the test split, {RULES[rule][1]}, mean ± sample standard deviation "
        "(ddof = 1) over seeds (number of seeds).",
        "accuracy.csv: top1_best_mean takes each seed's best epoch, chosen on the test split: optimistic.",
    ]
    teachers = [row.teacher for row in rows if row.method == TEACHER]
    if any("+" not in teacher for teacher in teachers):
        notes.append("Teacher: the one network that taught the pair's students, n = 1.")
    if any("+" in teacher for teacher in teachers):
        notes.append("Several teachers: the accuracy of the mean of their class probabilities.")
    if any(row.method not in ROW_LABELS for row in rows):
        notes.append(
            "Bold: the best mean of a distillation method in its column; "
            "one with a failed or diverged seed is passed over."
        )
    if any(PUBLISHED in row.method for row in rows):
        notes.append(
            f"{PUBLISHED}: the settings that the method's authors published for this very pair, mostly chosen by test "
            "accuracy; every other row has one setting for all pairs."
        )
    known = published.entries()
    places = [(row.teacher, row.student, row.method) for row in rows if row.published is not None]
    if sources := list(dict.fromkeys(known[place].source for place in places if place in known)):
        notes.append(f"Published numbers: {', '.join(sources)}; gap = ours - published, in points.")
    several = len({table_of(record) for record in records}) > 1
    for table in dict.fromkeys((row.dataset, row.recipe) for row in rows):
        prefix = f"{table[0]}, {table[1]}: " if several else ""
        groups = [group for group in selection.groups if (group.dataset, group.recipe) == table]
        counts = {row.n for row in rows if (row.dataset, row.recipe) == table and row.method != TEACHER and row.n}
        sentences = [*_spread(counts), *_mixtures(groups), *_codes(groups)]
        sentences += _ends(groups, [record for record in selection.teachers if table_of(record) == table])
        sentences += _superseded([record for record in selection.superseded if table_of(record) == table])
        notes += [prefix + sentence for sentence in sentences]
    return notes


MIXED_COMPILED = "mixes compiled networks and others"


def _spread(counts: set[int]) -> list[str]:
    notes = ["n = 1: no spread can be given."] if 1 in counts else []
    if len(counts) > 1:
        notes.append(f"n differs between cells: from {min(counts)} to {max(counts)} seeds.")
    return notes


def _mixtures(groups: Sequence[Group]) -> list[str]:
    """Records of one table that were not made alike. n/a records were not made at all."""
    records = [record for group in groups for record in group.records if record.status != "n/a"]

    def values(name: str, of: Sequence[Record]) -> list[str]:
        return sorted({str(r.environment[name]).split(":")[0] for r in of if r.environment.get(name) is not None})

    # Threads change the order of sums on the processor only.
    on_cpu = [r for r in records if str(r.environment.get("device", "cpu")).startswith("cpu")]
    mixed = {"torch": values("torch", records), "devices": values("device", records)}
    mixed["thread counts"] = sorted(values("threads", on_cpu), key=lambda count: (len(count), count))
    mixed["Pillow versions"] = values("pillow", [record for record in records if record.trial.data.encoded])
    notes = [f"This table mixes {what} {listed(of, 9)}." for what, of in mixed.items() if len(of) > 1]
    if len({"compiled" in record.environment for record in records}) > 1:
        notes.append(f"This table {MIXED_COMPILED}.")
    contents = {group.records[0].trial.data.content for group in groups}
    if len(contents) > 1:
        notes.append(f"This table mixes {len(contents)} versions of the images under one label.")
    if any(len({_schedule(group.records[0].trial) for group in of}) > 1 for of in by_pair(groups).values()):
        notes.append("This table mixes different training schedules or learning rates within a column.")
    return notes


def _schedule(trial: Trial) -> tuple[object, ...]:
    recipe = trial.recipe
    fixed = (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.milestones, recipe.gamma)
    return *fixed, recipe.size, recipe.pad, trial.lr


def _codes(groups: Sequence[Group]) -> list[str]:
    """Forms of one method that were trained before and after an edit of its file."""
    codes: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for group in groups:
        codes[group.records[0].trial.base][group.records[0].trial.code] = None
    return [
        f"{base}: its rows were trained with {len(hashes)} versions of its code; run them again to compare them."
        for base, hashes in codes.items()
        if len(hashes) > 1
    ]


def _ends(groups: Sequence[Group], teachers: Sequence[Record]) -> list[str]:
    """Each distinct reason once, with the cells that it concerns."""
    places: defaultdict[tuple[str, str], dict[str, dict[str, Record]]] = defaultdict(dict)
    shown = [record for group in groups for record in group.records]
    for record in (*shown, *teachers):  # a vanilla record may come more than once
        if record.status != "done":
            cells = places[record.status, one_line(record.reason)]
            cells.setdefault(_described(record), {})[record.trial.id] = record
    notes = []
    for (status, reason), cells in sorted(places.items(), key=lambda item: WORST.index(item[0][0])):
        seeds = {place: "" if status == "n/a" else f", {seed_list(list(of.values()))}" for place, of in cells.items()}
        notes.append(f"{status}: {reason} ({listed((place + seeds[place] for place in cells), separator='; ')})")
    return notes


def _described(record: Record) -> str:
    return f"{record.trial.method}, {pair_label(record.trial.teacher, record.trial.arch)}"


def _superseded(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    ordered = sorted(records, key=lambda record: (finished(record), record.trial.id))
    many = len(records) > 1
    return [
        f"{len(records)} superseded record{'s' if many else ''} left out: made with other code, settings, teacher, "
        f"data or protocol than the newest ({listed(map(_described, ordered), separator='; ')})."
    ]
