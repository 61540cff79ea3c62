"""One JSON record a trial under `runs/`, written whole, with its epochs and weights beside it.

runs/ID.json          the record; its presence means that the trial ended, and it is written last
runs/ID.epochs.json   rate, terms, accuracies and seconds of every epoch
runs/ID.pt            final weights (tensors only), whose SHA-256 is in the record
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from kdbench.spec import (
    FINAL,
    PROTOCOL,
    Epoch,
    Outcome,
    Record,
    UserError,
    Value,
    file_sha256,
)
from kdbench.store import fields
from kdbench.store.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("kdbench")

FOLDERS = ("runs", "checkpoints", "tables", "charts")
"""What a study writes under its results folder."""


class Store:
    """All records of one results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"

    def require_writable(self, *names: str) -> None:
        """Raises UserError, before any work is done, if results could not be written here (or in folders so named)."""
        try:
            for name in names or FOLDERS:
                folder = self.root / name
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".probe{os.getpid()}"
                probe.write_text("")
                probe.unlink()
        except OSError as error:
            raise UserError(
                f"results cannot be written to {self.root}: {error.strerror}; choose another --out"
            ) from None

    def save(self, outcome: Outcome, environment: Mapping[str, Value]) -> Record:
        """Write a trial's epochs and weights, then its record."""
        trial_id = outcome.trial.id
        digest = None
        if outcome.weights is not None:
            from kdbench.store.weights import save_weights

            digest = save_weights(self.runs / f"{trial_id}.pt", outcome.weights)
        if outcome.epochs:
            write_whole(
                self.runs / f"{trial_id}.epochs.json", fields.encode([asdict(epoch) for epoch in outcome.epochs])
            )
        record = _record(outcome, environment, digest)
        write_whole(self.runs / f"{trial_id}.json", fields.encode({**asdict(record), "id": trial_id}))
        return record

    def records(self) -> list[Record]:
        """Every readable record of this protocol, in the order of their names."""
        found = []
        for path in sorted(self.runs.glob("*.json")):
            if path.name.endswith(".epochs.json"):
                continue
            try:
                record = _read(path)
            except fields.UNREADABLE as error:
                log.warning("%s is not a readable record and is left out (%s: %s)", path, type(error).__name__, error)
                continue
            if record.protocol == PROTOCOL:
                found.append(record)
        return found

    def standing(self, rerun: frozenset[str] = frozenset()) -> frozenset[str]:
        """Fingerprints of trials that need no training; `rerun` names statuses that do not stand this time.

        A network that may serve as teacher stands only while its weights are whole.
        """
        return frozenset(
            record.trial.fingerprint
            for record in self.records()
            if record.status in FINAL - rerun and (record.status != "done" or self._whole(record))
        )

    def _whole(self, record: Record) -> bool:
        path = self._weights_path(record.trial.id)
        if not path.is_file():
            return False
        return record.trial.teacher is not None or file_sha256(path) == record.weights_sha256

    def find(self, fingerprint: str) -> Record | None:
        """The newest record of the trials with this fingerprint; they differ in labels only."""
        found = []
        for path in self.runs.glob(f"*.{fingerprint}.json"):
            with suppress(*fields.UNREADABLE):
                found.append(_read(path))
        return max(found, key=lambda record: (record.status == "done", record.finished), default=None)

    def epochs(self, trial_id: str) -> tuple[Epoch, ...]:
        """What was measured after each epoch. Raises OSError or ValueError if it cannot be read."""
        rows = json.loads((self.runs / f"{trial_id}.epochs.json").read_text("utf-8"))
        return tuple(Epoch(**row) for row in rows)

    def weights(self, record: Record) -> dict[str, Tensor]:
        """The final weights of a trial that is done. Raises ValueError if they are not those of the record."""
        from kdbench.store.weights import load_weights

        if record.weights_sha256 is None:
            raise ValueError(f"{record.trial.id} has no weights")
        return load_weights(self._weights_path(record.trial.id), record.weights_sha256)

    def _weights_path(self, trial_id: str) -> Path:
        return self.runs / f"{trial_id}.pt"


def _record(outcome: Outcome, environment: Mapping[str, Value], weights_sha256: str | None) -> Record:
    epochs = outcome.epochs
    last = epochs[-1] if epochs and outcome.status == "done" else None
    best = max(epochs, key=lambda epoch: (epoch.top1, -epoch.epoch)) if last else None
    validated = max(
        (epoch for epoch in epochs if last and epoch.val_top1 is not None),
        key=lambda epoch: (epoch.val_top1, -epoch.epoch),
        default=None,
    )
    return Record(
        protocol=PROTOCOL,
        trial=outcome.trial,
        status=outcome.status,
        reason=outcome.reason,
        top1=last.top1 if last else None,
        top5=last.top5 if last else None,
        best_top1=best.top1 if best else None,
        best_epoch=best.epoch if best else None,
        teacher_top1=outcome.teacher_top1,
        seconds_own=median(epoch.seconds_own for epoch in epochs) if epochs else None,
        seconds_shared=median(epoch.seconds_shared for epoch in epochs) if epochs else None,
        facts=dict(outcome.facts),
        environment=dict(environment),
        weights_sha256=weights_sha256,
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        cost=dict(outcome.cost),
        last10_top1=fmean(epoch.top1 for epoch in epochs[-10:]) if last else None,
        validated_top1=validated.top1 if validated else None,
        validated_epoch=validated.epoch if validated else None,
    )


def _read(path: Path) -> Record:
    content = json.loads(path.read_text("utf-8"))
    trial_id = content.pop("id")
    record = Record(**{**content, "trial": fields.trial(content["trial"])})
    if record.protocol == PROTOCOL and record.trial.id != trial_id:
        raise ValueError("its contents do not belong to its id")
    return record
