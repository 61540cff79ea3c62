"""Train the linear probes of many networks on the same target images; one failure leaves the others."""

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
from kdbench.data.dataset import Batch, Dataset, Split
from kdbench.data.resident import Loader, sequential_batches
from kdbench.models import features, info
from kdbench.train.checkpoint import Checkpoints, log
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.failures import Diverged, status_and_reason
from kdbench.train.linear_probe import ProbeTrainer, StackedProbes

_FEATURE_BYTES = 2**31  # of stored features at a time

Weights = Callable[[LinearProbe], Mapping[str, Tensor]]
"""Loads the weights of a probe's network."""

Trained = Iterator[tuple[ProbeTrainer, Exception | None]]
"""Trainers in the order in which they end, with their error if they failed."""


class Watcher(Protocol):
    """Watches a group of probes; for progress displays."""

    def group(self, probes: Sequence[LinearProbe], /) -> None: ...
    def advance(self, epochs: int, /) -> None: ...  # summed over the probes
    def record(self, record: ProbeRecord, /) -> None: ...


def train_probes(
    probes: Sequence[LinearProbe],
    dataset: Dataset,
    weights: Weights,
    checkpoints: Checkpoints,
    device: torch.device,
    environment: Mapping[str, Value],
    watcher: Watcher,
) -> Iterator[ProbeRecord]:
    """A record for each of the probes, which share target, protocol and seed. If `weights` raises, that probe fails."""
    watcher.group(probes)
    group = _Group(dataset, checkpoints, device, watcher)
    for key in dict.fromkeys(map(_group_key, probes)):
        compatible = [probe for probe in probes if _group_key(probe) == key]
        feature_bytes, _ = key
        count = max(1, _FEATURE_BYTES // feature_bytes) if feature_bytes else len(compatible)
        for start in range(0, len(compatible), count):
            for probe, trainer, result in group.train(compatible[start : start + count], weights):
                record = _record(probe, trainer, result, environment)
                watcher.record(record)
                yield record
                checkpoints.remove(probe.id)


def _group_key(probe: LinearProbe) -> tuple[int, float]:
    """Probes with equal keys are trained together: bytes of stored features (0: none are stored), and learning rate."""
    if probe.bn_train_mode:
        return 0, 0.0
    source = probe.source
    embedding_dim = features(source.arch, source.data.classes, source.data.size).embedding_dim
    return 4 * embedding_dim * probe.views * probe.data.train, probe.lr


Result = tuple[float, float] | Exception
"""Top-1 and top-5 accuracy of a probe, or its error."""


def _record(
    probe: LinearProbe, trainer: ProbeTrainer | None, result: Result, environment: Mapping[str, Value]
) -> ProbeRecord:
    finished = datetime.now(UTC).isoformat(timespec="milliseconds")
    if isinstance(result, Exception) or trainer is None:
        when = f"epoch {trainer.epoch}" if trainer and trainer.epoch else "before training"
        error = result if isinstance(result, Exception) else RuntimeError("it was not trained")
        status, reason = status_and_reason(error, when)
        return ProbeRecord(PROTOCOL, probe, status, reason, None, None, None, None, environment, finished)
    return ProbeRecord(PROTOCOL, probe, "done", None, *result, trainer.loss, trainer.seconds, environment, finished)


class _Group:
    """Trains probes together on one target data set."""

    def __init__(self, dataset: Dataset, checkpoints: Checkpoints, device: torch.device, watcher: Watcher) -> None:
        self.dataset, self.checkpoints, self.device, self.watcher = dataset, checkpoints, device, watcher

    def train(
        self, probes: Sequence[LinearProbe], weights: Weights
    ) -> Iterator[tuple[LinearProbe, ProbeTrainer | None, Result]]:
        """Each probe with its trainer (None if that could not be built) and its result, in the order of their ends."""
        normalizations = (info(probe.source.arch).normalization for probe in probes)
        self.normalizations = {normalization for normalization in normalizations if normalization}
        trainers = []
        for probe in probes:
            try:
                trainers.append(self._trainer(probe, weights(probe)))
            except Exception as error:
                yield probe, None, error
        if not trainers:
            return
        train = self._train_on_batches if probes[0].bn_train_mode else self._train_on_features
        for trainer, failure in train(trainers):
            yield trainer.probe, trainer, failure or self._accuracy(trainer)

    def _trainer(self, probe: LinearProbe, weights: Mapping[str, Tensor]) -> ProbeTrainer:
        """A trainer, resumed from the probe's checkpoint if there is one."""
        trainer = ProbeTrainer(probe, weights, self.device)
        if state := self.checkpoints.load(probe.id):
            try:
                trainer.load_state(state)
            except Exception as error:
                log.warning("the checkpoint of %s does not fit (%s): its training starts again", probe.id, error)
                return ProbeTrainer(probe, weights, self.device)
        return trainer

    def _accuracy(self, trainer: ProbeTrainer) -> Result:
        try:
            return trainer.accuracy(self._batches(self.dataset.test))
        except Exception as error:
            return error

    def _batches(self, split: Split) -> Iterator[Batch]:
        return sequential_batches(split, self.dataset.info, EVALUATION_BATCH, self.device, self.normalizations)

    def _train_on_features(self, trainers: list[ProbeTrainer]) -> Trained:
        """Compute the features of every view, then train all classifiers at once."""
        probe, train = trainers[0].probe, self.dataset.train
        stack = StackedProbes(trainers)
        for index, view in enumerate(views(probe.views, probe.recipe.pad, self.dataset.info.flip)):
            for batch in self._batches(Split(show(train.images, view), train.labels)):
                stack.embed(index, batch)
        stack.fit(train.labels, self.watcher.advance)
        for trainer in trainers:
            yield trainer, stack.errors.get(trainer)

    def _train_on_batches(self, trainers: list[ProbeTrainer]) -> Trained:
        """Train all networks on the same augmented batches, with a checkpoint after each epoch."""
        probe = trainers[0].probe
        loader = Loader(
            self.dataset,
            batch_size=probe.recipe.batch_size,
            pad=probe.recipe.pad,
            device=self.device,
            seed=probe.seed,
            normalizations=self.normalizations,
        )
        remaining = list(trainers)
        for epoch in range(1, probe.recipe.epochs + 1):
            active = [trainer for trainer in remaining if trainer.epoch == epoch - 1]
            errors: dict[ProbeTrainer, Exception] = {}
            for trainer in active:
                trainer.begin_epoch(epoch)
            for number, batch in enumerate(loader.epoch(epoch) if active else ()):
                for trainer in active:
                    if trainer not in errors:
                        try:
                            trainer.step(batch, number)
                        except Exception as error:
                            errors[trainer] = error
            for trainer in active:
                try:
                    if trainer not in errors:
                        trainer.end_epoch()
                        self.checkpoints.save([(trainer.probe.id, trainer.state())])
                except Diverged as error:
                    errors[trainer] = error
            remaining = [trainer for trainer in remaining if trainer not in errors]
            self.watcher.advance(len(trainers))
            yield from errors.items()
        for trainer in remaining:
            yield trainer, None
