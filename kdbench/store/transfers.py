"""One JSON record a transfer under `transfers/`, written whole."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from kdbench.disk import write_whole
from kdbench.spec import FINAL, TransferRecord
from kdbench.store import fields
from kdbench.store.reading import UNREADABLE, every, read

FOLDER = "transfers"


class Transfers:
    """All transfers of one results folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def save(self, record: TransferRecord) -> None:
        name = record.transfer.id
        write_whole(self.folder / f"{name}.json", fields.seal({**asdict(record), "id": name}))

    def records(self) -> list[TransferRecord]:
        """Every readable record of this protocol, in the order of their names."""
        return every(self.folder.glob("*.json"), _read, "it is trained again")

    def stamps(self) -> dict[str, str]:
        """When each transfer was finished, by fingerprint: another stamp is another try."""
        return {record.transfer.fingerprint: record.finished for record in self.records()}

    def find(self, fingerprint: str) -> TransferRecord | None:
        """The record of the transfer with this fingerprint, if there is one."""
        for path in self.folder.glob("*.json"):
            if path.name.endswith(f".{fingerprint}.json"):
                with suppress(*UNREADABLE):
                    return _read(path)
        return None

    def standing(self) -> frozenset[str]:
        """Fingerprints of transfers that need no training."""
        return frozenset(record.transfer.fingerprint for record in self.records() if record.status in FINAL)


def _read(path: Path) -> TransferRecord | None:
    return read(path, TransferRecord, lambda record: record.transfer.id)
