"""Several results folders, read as one study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from kdbench.core.record import EpochMetrics, ProbeRecord, Record
from kdbench.core.trial import Trial
from kdbench.results.store import Store

NAMED = 5  # trials of a note; the others are counted


class Folders:
    """The records of one folder or several; a trial that lies in several counts once, as it was finished last."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores

    @property
    def root(self) -> Path:
        """The first folder, to which reports are written."""
        return self.stores[0].root

    @cached_property
    def _found(self) -> dict[str, list[tuple[Record, Store]]]:
        """By the trial's id, which differs under another label; the record that counts is the first."""
        found: defaultdict[str, list[tuple[Record, Store]]] = defaultdict(list)
        for store in self.stores:
            for record in store.records():
                found[record.trial.id].append((record, store))
        return {trial: sorted(of, key=lambda item: item[0].finished, reverse=True) for trial, of in found.items()}

    def records(self) -> list[Record]:
        return [of[0][0] for of in self._found.values()]

    def probe_records(self) -> list[ProbeRecord]:
        """Of linear probes."""
        found: dict[str, ProbeRecord] = {}
        for record in sorted((r for store in self.stores for r in store.probe_records()), key=lambda r: r.finished):
            found[record.probe.fingerprint] = record
        return list(found.values())

    def epochs(self, trial_id: str) -> tuple[EpochMetrics, ...]:
        """As `Store.epochs`, of the folder whose record counts. Raises what that raises."""
        _, store = self._found[trial_id][0]
        return store.epochs(trial_id)

    @property
    def notes(self) -> list[str]:
        """Which trials lie in several folders, and which of them have another accuracy there."""
        several = [of for of in self._found.values() if len(of) > 1]
        differing = [of for of in several if len({record.top1 for record, _ in of}) > 1]
        return [
            sentence.format(_names([of[0][0].trial for of in trials]))
            for trials, sentence in (
                (several, "In several folders, the record that was finished last is shown: {}."),
                (differing, "Of these, another folder has another accuracy: {}."),
            )
            if trials
        ]


def _names(trials: Sequence[Trial]) -> str:
    names = [
        f"{trial.method}, {' → '.join(filter(None, (trial.teacher, trial.arch)))}, seed {trial.seed}"
        for trial in trials
    ]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return "; ".join([*names[:NAMED], *more])
