"""Records of linear probes: one JSON file each under `transfers/`, written atomically."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from kdbench.core.files import write_atomic
from kdbench.core.record import FINAL, ProbeRecord
from kdbench.results import serialize
from kdbench.results.reading import UNREADABLE, read_record, read_records

FOLDER = "transfers"


class ProbeStore:
    """The linear probes of one results folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def save(self, record: ProbeRecord) -> None:
        """Write a probe's record. Raises DiskError."""
        name = record.probe.id
        write_atomic(self.folder / f"{name}.json", serialize.dumps_checksummed({**asdict(record), "id": name}))

    def records(self) -> list[ProbeRecord]:
        """All readable records of this protocol, in ascending order of their names."""
        return read_records(self.folder.glob("*.json"), _read, "it is trained again")

    def finished_at(self) -> dict[str, str]:
        """When each probe was finished, by fingerprint; a probe that is trained again gets another time."""
        return {record.probe.fingerprint: record.finished for record in self.records()}

    def find(self, fingerprint: str) -> ProbeRecord | None:
        """The record of the probe with this fingerprint, if there is one."""
        for path in self.folder.glob("*.json"):
            if path.name.endswith(f".{fingerprint}.json"):
                with suppress(*UNREADABLE):
                    return _read(path)
        return None

    def completed(self) -> frozenset[str]:
        """Fingerprints of probes that need no training."""
        return frozenset(record.probe.fingerprint for record in self.records() if record.status in FINAL)


def _read(path: Path) -> ProbeRecord | None:
    return read_record(path, ProbeRecord, lambda record: record.probe.id)
