"""ProbeStore of many networks to one target: they share its images, and the failure of one is its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import torch
from torch import Tensor

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeRecord
from kdbench.core.trial import PROTOCOL, Value
from kdbench.data.augment import show, views
from kdbench.data.dataset import Dataset, Split
from kdbench.data.resident import Loader, sequential_batches
from kdbench.models import features, info
from kdbench.train.checkpoint import Checkpoints, log
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.failures import Diverged, status_and_reason
from kdbench.train.linear_probe import ProbeTrainer, StackedProbes

_ROOM = 2**31  # bytes of features that are held at a time

Ended = Iterator[tuple[ProbeTrainer, Exception | None]]


class Watcher(Protocol):
    """Watches a group of transfers; for progress displays."""

    def group(self, transfers: Sequence[LinearProbe]) -> None: ...
    def advance(self, epochs: int) -> None: ...  # epochs of one network
    def record(self, record: ProbeRecord) -> None: ...


def train_probes(
    transfers: Sequence[LinearProbe],
    images: Dataset,
    weights: Callable[[LinearProbe], Mapping[str, Tensor]],
    checkpoints: Checkpoints,
    device: torch.device,
    environment: Mapping[str, Value],
    watcher: Watcher,
) -> Iterator[ProbeRecord]:
    """A record for each of these, which share target, protocol and seed. Where `weights` raises, that one fails."""
    watcher.group(transfers)
    group = _Group(images, checkpoints, device, watcher)
    for kind in dict.fromkeys(map(_kind, transfers)):
        alike = [transfer for transfer in transfers if _kind(transfer) == kind]
        size, _ = kind
        many = max(1, _ROOM // size) if size else len(alike)
        for start in range(0, len(alike), many):
            for outcome in group.train(alike[start : start + many], weights):
                record = _record(*outcome, environment)
                watcher.record(record)
                yield record
                checkpoints.remove(record.probe.id)


def _kind(transfer: LinearProbe) -> tuple[int, float]:
    """Those of one kind are trained at once: bytes of the features of one network (0: none are kept), and rate."""
    if transfer.bn_train_mode:
        return 0, 0.0
    source = transfer.source
    width = features(source.arch, source.data.classes, source.data.size).embedding_dim
    return 4 * width * transfer.views * transfer.data.train, transfer.lr


Outcome = tuple[LinearProbe, ProbeTrainer | None, tuple[float, float] | Exception]
"""A transfer, how far it came, and its top-1 and top-5 accuracy or what ended it."""


def _record(
    transfer: LinearProbe,
    probe: ProbeTrainer | None,
    end: tuple[float, float] | Exception,
    environment: Mapping[str, Value],
) -> ProbeRecord:
    finished = datetime.now(UTC).isoformat(timespec="milliseconds")
    if isinstance(end, Exception) or probe is None:
        when = f"epoch {probe.epoch}" if probe and probe.epoch else "before training"
        status, reason = status_and_reason(
            end if isinstance(end, Exception) else RuntimeError("it was not trained"), when
        )
        return ProbeRecord(PROTOCOL, transfer, status, reason, None, None, None, None, environment, finished)
    return ProbeRecord(PROTOCOL, transfer, "done", None, *end, probe.loss, probe.seconds, environment, finished)


class _Group:
    """ModelLoader that are trained on the same images side by side."""

    def __init__(self, images: Dataset, checkpoints: Checkpoints, device: torch.device, watcher: Watcher) -> None:
        self.images, self.checkpoints, self.device, self.watcher = images, checkpoints, device, watcher

    def train(
        self, transfers: Sequence[LinearProbe], weights: Callable[[LinearProbe], Mapping[str, Tensor]]
    ) -> Iterator[Outcome]:
        self.normalization = {
            each for each in (info(transfer.source.arch).normalization for transfer in transfers) if each
        }
        probes = []
        for transfer in transfers:
            try:
                probes.append(self._probe(transfer, weights(transfer)))
            except Exception as error:
                yield transfer, None, error
        if not probes:
            return
        for probe, problem in (self._moving if transfers[0].bn_train_mode else self._fixed)(probes):
            end: tuple[float, float] | Exception | None = problem
            if end is None:
                try:
                    test = sequential_batches(
                        self.images.test, self.images.info, EVALUATION_BATCH, self.device, self.normalization
                    )
                    end = probe.accuracy(test)
                except Exception as error:
                    end = error
            yield probe.probe, probe, end

    def _probe(self, transfer: LinearProbe, weights: Mapping[str, Tensor]) -> ProbeTrainer:
        probe = ProbeTrainer(transfer, weights, self.device)
        if state := self.checkpoints.load(transfer.id):
            try:
                probe.load_state(state)
            except Exception as error:
                log.warning("the checkpoint of %s does not fit (%s): it starts again", transfer.id, error)
                return ProbeTrainer(transfer, weights, self.device)
        return probe

    def _fixed(self, probes: list[ProbeTrainer]) -> Ended:
        """Features of every view first, then all classifiers at once."""
        first, train = probes[0].probe, self.images.train
        stack = StackedProbes(probes)
        for number, view in enumerate(views(first.views, first.recipe.pad, self.images.info.flip)):
            shown = Split(show(train.images, view), train.labels)
            for batch in sequential_batches(shown, self.images.info, EVALUATION_BATCH, self.device, self.normalization):
                stack.embed(number, batch)
        stack.fit(train.labels, self.watcher.advance)
        for probe in probes:
            yield probe, stack.problems.get(probe)

    def _moving(self, probes: list[ProbeTrainer]) -> Ended:
        """Every step for all networks, on the same augmented batch; a state is kept after each epoch."""
        first, recipe = probes[0].probe, probes[0].probe.recipe
        loader = Loader(
            self.images,
            batch_size=recipe.batch_size,
            pad=recipe.pad,
            device=self.device,
            seed=first.seed,
            normalizations=self.normalization,
        )
        left = list(probes)
        for epoch in range(1, recipe.epochs + 1):
            active = [probe for probe in left if probe.epoch == epoch - 1]
            problems: dict[ProbeTrainer, Exception] = {}
            for probe in active:
                probe.begin_epoch(epoch)
            for number, batch in enumerate(loader.epoch(epoch) if active else ()):
                for probe in active:
                    if probe not in problems:
                        try:
                            probe.step(batch, number)
                        except Exception as error:
                            problems[probe] = error
            for probe in active:
                try:
                    if probe not in problems:
                        probe.end_epoch()
                        self.checkpoints.save([(probe.probe.id, probe.state())])
                except Diverged as error:
                    problems[probe] = error
            left = [probe for probe in left if probe not in problems]
            self.watcher.advance(len(probes))
            yield from problems.items()
        for probe in left:
            yield probe, None
