"""Records of trials and of linear probes: one JSON file each, written atomically.

runs/ID.json          the record; it is written last, and its presence means that the trial ended
runs/ID.epochs.json   learning rate, loss terms, accuracies and seconds of every epoch
runs/ID.pt            final weights (tensors only), whose SHA-256 is in the record
transfers/ID.json     the record of a linear probe

A file that fails its checksum is quarantined when it is read. A damaged record makes its trial run again. A record
stands without its epochs, which only charts need, and without its weights, unless the trial must serve as a teacher.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

from kdbench.core.errors import UserError, plain
from kdbench.core.files import DamagedFile, quarantine, remove_stale, temporary, write_atomic
from kdbench.core.record import FINAL, EpochMetrics, Outcome, ProbeOutcome, ProbeRecord, Record
from kdbench.core.trial import PROTOCOL, Trial, Value
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE, RecordReader, read_record, read_verified

if TYPE_CHECKING:
    from torch import Tensor

PROBES = "transfers"
"""Folder of linear probes under a results folder, one record each."""

FOLDERS = ("runs", "checkpoints", "tables", "charts")
"""Folders of a study under its results folder."""


class Store:
    """The trials and linear probes of one results folder.

    Unless `quarantine` is False, damaged files are moved to its `damaged/`.
    """

    def __init__(self, root: Path, quarantine: bool = True) -> None:
        self.root, self.quarantine = root, quarantine
        self.runs, self.probes = root / "runs", root / PROBES
        self._reader, self._probe_reader = RecordReader(_read), RecordReader(_read_probe)

    def require_writable(self, *names: str) -> None:
        """Raise UserError if results cannot be written to the folders of these names (none: FOLDERS)."""
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
        """Remove the temporary files of processes that were killed."""
        for name in ("", *FOLDERS, PROBES):
            remove_stale(self.root / name)

    def save(self, outcome: Outcome, environment: Mapping[str, Value], keep_weights: bool = True) -> Record:
        """Write a trial's weights (if they are to be kept) and epochs, then its record. Raises DiskError."""
        trial_id = outcome.trial.id
        sha256 = None
        if outcome.weights is not None and keep_weights:
            from kdbench.results.weights import save_weights

            sha256 = save_weights(self._weights_path(trial_id), outcome.weights)
        if outcome.epochs:
            rows = [asdict(epoch) for epoch in outcome.epochs]
            write_atomic(self._epochs_path(trial_id), serialize.dumps_checksummed({"id": trial_id, "epochs": rows}))
        record = _record(outcome, environment, sha256)
        write_atomic(self.runs / f"{trial_id}.json", serialize.dumps_checksummed({**asdict(record), "id": trial_id}))
        return record

    def save_probe(self, outcome: ProbeOutcome, environment: Mapping[str, Value]) -> ProbeRecord:
        """Write the record of a linear probe. Raises DiskError."""
        values = {item.name: getattr(outcome, item.name) for item in fields(outcome)}
        values["reason"] = outcome.reason and plain(outcome.reason)
        record = ProbeRecord(PROTOCOL, **values, environment=dict(environment), finished=_now())
        self.write_probe(record)
        return record

    def write_probe(self, record: ProbeRecord) -> None:
        """Write the record of a linear probe. Raises DiskError."""
        name = record.probe.id
        write_atomic(self.probes / f"{name}.json", serialize.dumps_checksummed({**asdict(record), "id": name}))

    def remove_weights(self, trial_id: str) -> None:
        """Remove a trial's final weights; its record stands."""
        self._weights_path(trial_id).unlink(missing_ok=True)

    def probe_records(self) -> list[ProbeRecord]:
        """All readable records of linear probes, in ascending order of their names."""
        return self._probe_reader.read(self.probes.glob("*.json"), "it is trained again" if self.quarantine else None)

    def records(self) -> list[Record]:
        """All readable records of trials of this protocol, in ascending order of their names."""
        paths = [path for path in self.runs.glob("*.json") if not path.name.endswith(".epochs.json")]
        return self._reader.read(paths, "its trial runs again" if self.quarantine else None)

    def finished_at(self) -> dict[str, str]:
        """When each trial and probe was finished, by fingerprint; what is trained again gets another time."""
        trials = {fingerprint: record.finished for fingerprint, record in self._latest().items()}
        return trials | {record.probe.fingerprint: record.finished for record in self.probe_records()}

    def find_finished(self, fingerprint: str) -> str | None:
        """When the trial or probe with this fingerprint was finished; None if there is no record."""
        record = self.find(fingerprint) or self.find_probe(fingerprint)
        return record.finished if record else None

    def completed_probes(self) -> frozenset[str]:
        """Fingerprints of linear probes that need no training."""
        return frozenset(record.probe.fingerprint for record in self.probe_records() if record.status in FINAL)

    def find_probe(self, fingerprint: str) -> ProbeRecord | None:
        """The record of the probe with this fingerprint, if there is one."""
        for path in _files(self.probes, fingerprint):
            with suppress(*UNREADABLE):
                return _read_probe(path)
        return None

    def completed(
        self, rerun: frozenset[str] = frozenset(), needed: Collection[str] | None = None, since: str | None = None
    ) -> frozenset[str]:
        """Fingerprints of trials that need no training.

        Trials whose status is in `rerun` are trained again, unless they were finished after `since` (ISO 8601), when
        the rerun began.

        A trial that is done needs its weights only as a teacher: if its fingerprint is among the `needed`, or, where
        these are unknown (None), if it is a vanilla trial.
        """
        return frozenset(
            fingerprint
            for fingerprint, record in self._latest().items()
            if record.status in FINAL
            and (record.status not in rerun or (since is not None and record.finished > since))
            and (record.status != "done" or not _is_needed(record, needed) or self._has_weights(record))
        )

    def _latest(self) -> dict[str, Record]:
        """The latest record of each trial, by fingerprint: trials of one fingerprint may differ in their labels."""
        return {record.trial.fingerprint: record for record in sorted(self.records(), key=_age)}

    def _has_weights(self, record: Record) -> bool:
        try:
            return bool(self._weights_file(record, "it is trained again"))
        except ValueError:
            return False

    def find(self, fingerprint: str) -> Record | None:
        """The latest record of the trial with this fingerprint; None if there is none."""
        records = []
        for path in _files(self.runs, fingerprint):
            with suppress(*UNREADABLE):
                records.append(_read(path))
        return max(filter(None, records), key=_age, default=None)

    def epochs(self, trial_id: str) -> tuple[EpochMetrics, ...]:
        """The metrics of a trial's epochs. Raises OSError, ValueError or TypeError if they cannot be read."""
        path = self._epochs_path(trial_id)
        try:
            content = serialize.load_checksummed(path)
        except DamagedFile as error:
            if self.quarantine:
                quarantine(path, error, "its record stands, charts leave its epochs out")
            raise
        if content.get("id") != trial_id:
            raise ValueError("its contents do not belong to its id")
        return serialize.build(_Epochs, content).epochs

    def weights(self, record: Record, part: str = "network") -> dict[str, Tensor]:
        """Final weights of a trial that is done, see `load_weights`.

        Raises ValueError if they are missing or damaged; the message says how to train them again.
        """
        from kdbench.results.weights import load_weights

        return load_weights(self._weights_file(record, "its record stands"), part)

    def _weights_file(self, record: Record, consequence: str) -> bytes:
        """The bytes of a weights file. A damaged one is quarantined. Raises ValueError."""
        if record.weights_sha256 is None:
            raise ValueError(f"{record.trial.id} has no weights: it failed, or they were not kept (--keep-weights)")
        path = self._weights_path(record.trial.id)
        remedy = f"the command that trained these weights trains them again with {_rerun_options(record.trial)}"
        try:
            return read_verified(path, record.weights_sha256)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; {remedy}") from None
        except DamagedFile as error:
            if self.quarantine:
                quarantine(path, error, consequence)
            raise ValueError(f"{path} is damaged: {error}; {remedy}") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None

    def _weights_path(self, trial_id: str) -> Path:
        return self.runs / f"{trial_id}.pt"

    def _epochs_path(self, trial_id: str) -> Path:
        return self.runs / f"{trial_id}.epochs.json"


def _age(record: Record) -> tuple[bool, str]:
    return record.status == "done", record.finished


def _is_needed(record: Record, needed: Collection[str] | None) -> bool:
    return not record.trial.teachers if needed is None else record.trial.fingerprint in needed


def _rerun_options(trial: Trial) -> str:
    """Command-line options that narrow a study to the trial's method, pair and seed, and train these again."""
    pair = f"{trial.teacher or trial.arch}:{trial.arch}"
    options = ["--methods", trial.method, "--pairs", pair, "--seeds", f"{trial.seed},", "--rerun", "done"]
    return shlex.join(options)


@dataclass(frozen=True)
class _Epochs:
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
        finished=_now(),
        cost=dict(outcome.cost),
        last10_top1=fmean(epoch.top1 for epoch in epochs[-10:]) if last else None,
        validated_top1=validated.top1 if validated else None,
        validated_epoch=validated.epoch if validated else None,
        metrics=dict(outcome.metrics),
    )


def _files(folder: Path, fingerprint: str) -> list[Path]:
    """The records of a fingerprint, which may come from a forged record and is no pattern."""
    return [path for path in folder.glob("*.json") if path.name.endswith(f".{fingerprint}.json")]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _read_probe(path: Path) -> ProbeRecord | None:
    return read_record(path, ProbeRecord, lambda record: record.probe.id)


def _read(path: Path) -> Record | None:
    return read_record(path, Record, lambda record: record.trial.id)
