"""Accuracy of linear probes on other data: rows methods, columns pairs and targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from kdbench.core.record import ProbeRecord, Record
from kdbench.report.model import Cell, Sheet, table
from kdbench.report.results import StudyResults
from kdbench.report.scores import Column, best, cell_key, grid, places, rows_of, score_cell

COLUMNS = (
    *("dataset", "recipe", "protocol", "target", "teacher", "student", "method", "status", "n"),
    *("top1_mean", "top1_sd", "top5_mean", "published", "gap", "reason"),
)
"""The columns of the long form and of transfer.csv; `dataset` and `recipe` are those of the networks' training."""

_MEANING = (
    "Cells: top-1 accuracy (%) on the test split of the target, of a linear classifier on the frozen backbone of a "
    "network that was trained on other images; mean ± sample standard deviation (ddof = 1) over seeds (number of "
    "seeds)."
)
_PROTOCOLS = {
    "authors": "authors: batch-norm layers are in training mode, so that their running statistics change; "
    "weight decay 5e-4; random crops and flips.",
    "frozen": "frozen: the network is in evaluation mode and does not change; no weight decay; fixed augmentations.",
}


@table("transfer", order=60)
def transfer(results: StudyResults) -> Sheet | None:
    """Of the networks of a study that were transferred."""
    return sheet(results.transfers) if results.transfers else None


def sheet(records: Sequence[ProbeRecord]) -> Sheet:
    """A table for each protocol."""
    frame, tables = transfers(records), []
    for protocol in dict.fromkeys(frame["protocol"]):
        part = frame[frame["protocol"] == protocol]
        for place in places(part):
            rows = rows_of(part, *place)
            tables.append(grid(protocol, place, rows, _marked(best(rows))))
    return Sheet("Top-1 accuracy after transfer (%)", frame, tables, notes(frame))


def _marked(first: Collection[tuple[Column, str]]) -> Callable[[dict[str, Any]], Cell]:
    return lambda row: replace(score_cell(row), best=cell_key(row) in first)


def transfers(records: Sequence[ProbeRecord]) -> pd.DataFrame:
    """The long form: one row per (dataset, recipe, protocol, target, teacher, student, method), with COLUMNS."""
    parts: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in _newest(records):
        parts[record.probe.recipe_label, record.probe.data.label].append(_as_trained(record))
    frames = []
    for (protocol, target), group in sorted(parts.items()):
        frame = StudyResults(group, evaluated_on=target).accuracy
        if not published(protocol):
            frame = frame.assign(published=float("nan"), gap=float("nan"))
        frames.append(frame.assign(protocol=protocol, target=target))
    whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    return whole[list(COLUMNS)]


def _newest(records: Sequence[ProbeRecord]) -> list[ProbeRecord]:
    """One record for each network, protocol and target: networks may have been trained again, targets have changed."""
    networks: dict[tuple[str, str, str], ProbeRecord] = {}
    targets: dict[str, ProbeRecord] = {}
    for record in sorted(records, key=lambda record: record.finished):
        probe = record.probe
        networks[probe.source.fingerprint, probe.recipe_label, probe.data.label] = record
        targets[probe.data.label] = record
    return [
        record
        for record in networks.values()
        if record.probe.data.content == targets[record.probe.data.label].probe.data.content
    ]


def published(protocol: str) -> bool:
    """Whether accuracies under a protocol, as tables label it, may stand beside published ones."""
    return protocol.partition("+")[0] == "authors"


def _as_trained(record: ProbeRecord) -> Record:
    """The record of the source as if its test split had been the target's: what tables are computed from."""
    return Record(
        protocol=record.protocol,
        trial=record.probe.source,
        status=record.status,
        reason=record.reason,
        top1=record.top1,
        top5=record.top5,
        best_top1=None,
        best_epoch=None,
        teacher_top1=None,
        student_seconds=None,
        shared_seconds=None,
        extra_info={},
        environment=record.environment,
        weights_sha256=record.probe.weights,
        finished=record.finished,
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """What a reader must know beside the cells."""
    if not len(frame):
        return []
    names = {str(label).partition("@")[0].partition(",")[0].partition("+")[0] for label in frame["protocol"]}
    lines = [_MEANING, *(text for name, text in _PROTOCOLS.items() if name in names)]
    if (frame["n"] == 1).any():
        lines.append("n = 1: no spread can be given (teachers are always one network).")
    for row in frame[frame["reason"] != ""].to_dict("records"):
        lines.append(f"{row['method']}, {row['target']}, {row['protocol']}: {row['reason']}")
    return lines
