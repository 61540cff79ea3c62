"""One JSON record a trial under `runs/`, written whole, with its epochs and weights beside it.

runs/ID.json          the record; its presence means that the trial ended, and it is written last
runs/ID.epochs.json   rate, terms, accuracies and seconds of every epoch
runs/ID.pt            final weights (tensors only), whose SHA-256 is in the record

Each carries a checksum. What does not agree with it is set aside, and then its trial runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from kdbench.core.errors import UserError, plain
from kdbench.core.files import DamagedFile, quarantine, remove_stale, temporary, write_atomic
from kdbench.core.record import FINAL, EpochMetrics, Outcome, Record
from kdbench.core.trial import PROTOCOL, Value
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE, contents, every, read

if TYPE_CHECKING:
    from torch import Tensor

FOLDERS = ("runs", "checkpoints", "tables", "charts")
"""What a study writes under its results folder."""

_AGAIN = "its trial runs again"


class Store:
    """All records of one results folder; `quarantine`: damaged files may be moved to the folder of that name."""

    def __init__(self, root: Path, quarantine: bool = True) -> None:
        self.root, self.quarantine = root, quarantine
        self.runs = root / "runs"

    def require_writable(self, *names: str) -> None:
        """Raises UserError, before any work is done, if results could not be written here (or in folders so named)."""
        try:
            for name in names or FOLDERS:
                folder = self.root / name
                folder.mkdir(parents=True, exist_ok=True)
                probe = temporary(folder / "probe")
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise UserError(
                f"results cannot be written to {self.root}: {error.strerror}; choose another --out"
            ) from None

    def remove_stale(self) -> None:
        """Remove what processes that were killed left half written."""
        for name in ("", *FOLDERS, "transfers"):
            remove_stale(self.root / name)

    def save(self, outcome: Outcome, environment: Mapping[str, Value]) -> Record:
        """Write a trial's epochs and weights, then its record. Raises DiskError."""
        trial_id = outcome.trial.id
        digest = None
        if outcome.weights is not None:
            from kdbench.results.weights import save_weights

            digest = save_weights(self.runs / f"{trial_id}.pt", outcome.weights)
        if outcome.epochs:
            rows = [asdict(epoch) for epoch in outcome.epochs]
            write_atomic(self._epochs_path(trial_id), serialize.dumps_checksummed({"id": trial_id, "epochs": rows}))
        record = _record(outcome, environment, digest)
        write_atomic(self.runs / f"{trial_id}.json", serialize.dumps_checksummed({**asdict(record), "id": trial_id}))
        return record

    def records(self) -> list[Record]:
        """Every readable record of this protocol, in the order of their names."""
        paths = [path for path in self.runs.glob("*.json") if not path.name.endswith(".epochs.json")]
        return every(paths, _read, _AGAIN if self.quarantine else None)

    def finished_at(self) -> dict[str, str]:
        """When the newest record of each trial was finished, by fingerprint: another stamp is another try."""
        return {record.trial.fingerprint: record.finished for record in sorted(self.records(), key=_age)}

    def completed(self, rerun: frozenset[str] = frozenset()) -> frozenset[str]:
        """Fingerprints of trials that need no training; `rerun` names statuses that do not stand this time.

        What is done stands while its files are there, a network that may serve as teacher while its weights are whole.
        """
        return frozenset(
            record.trial.fingerprint
            for record in self.records()
            if record.status in FINAL - rerun and (record.status != "done" or self._whole(record))
        )

    def _whole(self, record: Record) -> bool:
        name = record.trial.id
        if not self._weights_path(name).is_file() or not self._epochs_path(name).is_file():
            return False
        if record.trial.teachers:
            return True
        with suppress(ValueError):
            return bool(self._checked_weights(record))
        return False

    def find(self, fingerprint: str) -> Record | None:
        """The newest record of the trials with this fingerprint; they differ in labels only."""
        found = []
        for path in self.runs.glob("*.json"):
            if path.name.endswith(f".{fingerprint}.json"):
                with suppress(*UNREADABLE):
                    found.append(_read(path))
        return max(filter(None, found), key=_age, default=None)

    def epochs(self, trial_id: str) -> tuple[EpochMetrics, ...]:
        """What was measured after each epoch. Raises OSError, ValueError or TypeError if it cannot be read."""
        path = self._epochs_path(trial_id)
        try:
            content = serialize.load_checksummed(path)
        except DamagedFile as error:
            if self.quarantine:
                quarantine(path, error, _AGAIN)
            raise
        if content.get("id") != trial_id:
            raise ValueError("its contents do not belong to its id")
        return serialize.build(_Curve, content).epochs

    def weights(self, record: Record, part: str = "network") -> dict[str, Tensor]:
        """Final weights of a trial that is done, see `load_weights`. Raises ValueError if they are not the record's."""
        from kdbench.results.weights import load_weights

        return load_weights(self._checked_weights(record), part)

    def _checked_weights(self, record: Record) -> bytes:
        if record.weights_sha256 is None:
            raise ValueError(f"{record.trial.id} has no weights")
        path = self._weights_path(record.trial.id)
        try:
            return contents(path, record.weights_sha256)
        except DamagedFile as error:
            if self.quarantine:
                quarantine(path, error, _AGAIN)
            raise ValueError(f"{path} is damaged: {error}") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None

    def _weights_path(self, trial_id: str) -> Path:
        return self.runs / f"{trial_id}.pt"

    def _epochs_path(self, trial_id: str) -> Path:
        return self.runs / f"{trial_id}.epochs.json"


def _age(record: Record) -> tuple[bool, str]:
    return record.status == "done", record.finished


@dataclass(frozen=True)
class _Curve:
    id: str
    epochs: tuple[EpochMetrics, ...]


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
        reason=outcome.reason and plain(outcome.reason),
        top1=last.top1 if last else None,
        top5=last.top5 if last else None,
        best_top1=best.top1 if best else None,
        best_epoch=best.epoch if best else None,
        teacher_top1=outcome.teacher_top1,
        student_seconds=median(epoch.student_seconds for epoch in epochs) if epochs else None,
        shared_seconds=median(epoch.shared_seconds for epoch in epochs) if epochs else None,
        extra_info=dict(outcome.extra_info),
        environment=dict(environment),
        weights_sha256=weights_sha256,
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        cost=dict(outcome.cost),
        last10_top1=fmean(epoch.top1 for epoch in epochs[-10:]) if last else None,
        validated_top1=validated.top1 if validated else None,
        validated_epoch=validated.epoch if validated else None,
    )


def _read(path: Path) -> Record | None:
    return read(path, Record, lambda record: record.trial.id)
