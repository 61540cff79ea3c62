"""How each method was set, and the recipe that all of them were trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from kdbench.core.trial import Trial
from kdbench.report.groups import Group
from kdbench.report.model import Cell, Place, Row, Sheet, Table, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import listed, method_order, pair_label

COLUMNS = ("dataset", "recipe", "teacher", "student", "method", "kind", "setting", "value", "changed")
"""Of settings.csv; `changed`: whether it differs from the method's default. The recipe's rows have no method."""

_WEIGHT = "weight"  # a setting with this ending says how much a term counts
_NOTES = (
    "Settings: all weights, and what differs from the method's defaults (changed). All settings are in settings.csv.",
    "Settings: records of older versions do not say which ones differ: all are shown.",
)


@table("settings", order=90)
def settings(results: StudyResults) -> Sheet:
    """Of the variant that is shown of each method."""
    places = dict.fromkeys((group.dataset, group.recipe) for group in results.groups)
    groups = {place: [g for g in results.groups if (g.dataset, g.recipe) == place] for place in places}
    tables = [made(place, groups[place]) for place in places for made in (_methods, _recipe)]
    unknown = any(group.records[0].trial.changed is None for group in results.groups)
    return Sheet("Settings", _frame(groups), tables, _NOTES[: 1 + unknown] if results.groups else ())


def _methods(place: Place, groups: Sequence[Group]) -> Table:
    """A line a method, or several where its settings differ between pairs."""
    lines: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        lines.setdefault((group.method, _shown(group.records[0].trial)), []).append(group)
    of_method = {method: [line for line in lines if line[0] == method] for method, _ in lines}
    rows = []
    for method in method_order([{"method": method} for method in of_method]):
        for line in of_method[method]:
            pairs = "" if len(of_method[method]) == 1 else listed(pair_label(g.teacher, g.student) for g in lines[line])
            kind = lines[line][0].records[0].trial.kind
            rows.append(Row(method, [Cell(kind or None), Cell(line[1]), Cell(pairs or "all")]))
    return Table("", place, [("kind",), ("settings",), ("pairs",)], rows)


def _shown(trial: Trial) -> str:
    """`ce_weight=1, icd_weight=2.5 (changed)`."""
    changed = trial.changed
    return ", ".join(
        f"{name}={_text(value)}{' (changed)' if changed and name in changed else ''}"
        for name, value in trial.settings.items()
        if changed is None or name in changed or name.endswith(_WEIGHT)
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _recipe(place: Place, groups: Sequence[Group]) -> Table:
    rows = [Row(name, [Cell(value)]) for name, value in _recipe_of(groups).items()]
    return Table("recipe", place, [("value",)], rows, corner="recipe")


def _recipe_of(groups: Sequence[Group]) -> dict[str, str]:
    """What all trials of a table were trained with; values that are not shared stand side by side."""
    trials = [group.records[0].trial for group in groups]
    rates: dict[float, dict[str, None]] = {}
    for trial in trials:
        rates.setdefault(trial.lr, {})[trial.arch] = None
    few = min(rates.values(), key=len)
    lines = [_lines(trial) for trial in trials]
    shared = {name: "; ".join(dict.fromkeys(line[name] for line in lines)) for name in lines[0]}
    shared["learning rate"] = ", ".join(
        f"{rate:g}" + (f" ({listed(archs, 6)})" if len(rates) > 1 and archs is few else "")
        for rate, archs in sorted(rates.items(), key=lambda item: item[1] is few)
    )
    return shared


def _lines(trial: Trial) -> Mapping[str, str]:
    recipe, data = trial.recipe, trial.data
    drops = ", ".join(f"{epoch:g}" for epoch in recipe.milestones)
    step = f"times {recipe.gamma:g} after epochs {drops}" if recipe.milestones else "constant"
    momentum = f", momentum {recipe.momentum:g}" if recipe.optimizer == "sgd" else ""
    crops = [f"random crops after padding by {recipe.pad} pixels"] if recipe.pad else []
    return {
        "optimizer": f"{recipe.optimizer}{momentum}, weight decay {recipe.weight_decay:g}",
        "learning rate": "",
        "schedule": step if recipe.schedule == "step" else recipe.schedule,
        "batch": str(recipe.batch_size),
        "epochs": str(recipe.epochs),
        "augmentation": ", ".join([*crops, *["horizontal flips"] * data.flip]) or "none",
        "image size": f"{recipe.size} pixels",
        "gradient clipping": "none" if recipe.max_grad_norm is None else f"norm {recipe.max_grad_norm:g}",
        "precision": trial.precision,
    }


def _frame(places: Mapping[Place, Sequence[Group]]) -> pd.DataFrame:
    """A row a setting, of the recipe and of each method and pair."""
    return pd.DataFrame(
        [row for place, groups in places.items() for row in _rows(place, groups)], columns=list(COLUMNS)
    )


def _rows(place: Place, groups: Sequence[Group]) -> Iterable[tuple[Any, ...]]:
    for name, value in _recipe_of(groups).items():
        yield (*place, "", "", "", "", name, value, None)
    for group in groups:
        trial = group.records[0].trial
        for name, set_to in trial.settings.items():
            changed = None if trial.changed is None else name in trial.changed
            yield (*place, group.teacher, group.student, group.method, trial.kind, name, _text(set_to), changed)
