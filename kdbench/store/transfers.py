"""One JSON record a transfer under `transfers/`, written whole."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from kdbench.spec import FINAL, PROTOCOL, Transfer, TransferRecord
from kdbench.store import fields
from kdbench.store.files import write_whole

log = logging.getLogger("kdbench")

FOLDER = "transfers"


class Transfers:
    """All transfers of one results folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER

    def save(self, record: TransferRecord) -> None:
        name = record.transfer.id
        write_whole(self.folder / f"{name}.json", fields.encode({**asdict(record), "id": name}))

    def records(self) -> list[TransferRecord]:
        """Every readable record of this protocol, in the order of their names."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                record = _read(path)
            except fields.UNREADABLE as error:
                log.warning("%s is not a readable record and is left out (%s: %s)", path, type(error).__name__, error)
                continue
            if record.protocol == PROTOCOL:
                found.append(record)
        return found

    def standing(self) -> frozenset[str]:
        """Fingerprints of transfers that need no training."""
        return frozenset(record.transfer.fingerprint for record in self.records() if record.status in FINAL)


def _read(path: Path) -> TransferRecord:
    content = json.loads(path.read_text("utf-8"))
    name, inner = content.pop("id"), content["transfer"]
    parts = {"source": fields.trial(inner["source"]), "data": fields.data(inner["data"])}
    transfer = Transfer(**{**inner, **parts, "recipe": fields.recipe(inner["recipe"])})
    record = TransferRecord(**{**content, "transfer": transfer})
    if record.protocol == PROTOCOL and transfer.id != name:
        raise ValueError("its contents do not belong to its id")
    return record
