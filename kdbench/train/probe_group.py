"""Train the linear probes of many networks on the same target images; one failure leaves the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.core.errors import Interrupted
from kdbench.core.events import Checkpoint, Emit, EpochEnd, TrialEnd
from kdbench.core.jobs import ProbeJob
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.record import ProbeOutcome
from kdbench.data.augment import views
from kdbench.data.dataset import Dataset
from kdbench.models import features, info
from kdbench.train.checkpoint import log, serialize
from kdbench.train.evaluate import evaluation_batch
from kdbench.train.failures import Diverged, status_and_reason
from kdbench.train.linear_probe import ProbeTrainer, StackedProbes

_FEATURE_BYTES = 2**31  # of stored features at a time

Trained = Iterator[tuple[ProbeTrainer, Exception | None]]
"""Trainers in the order in which they end, with their error if they failed."""


class ProbeGroupTrainer:
    """Trains the probes of a job, which share target, protocol and seed.

    `load` gives a probe's last checkpoint by its id; `stop` is asked after every epoch.
    """

    def __init__(
        self,
        job: ProbeJob,
        dataset: Dataset,
        device: torch.device,
        emit: Emit,
        load: Callable[[str], dict[str, Any] | None] = lambda probe_id: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.dataset, self.device, self.emit, self.load, self.stop = job, dataset, device, emit, load, stop
        self.evaluation_batch = evaluation_batch(device, dataset.info.size)
        normalizations = (info(probe.source.arch).normalization for probe in job.items)
        first = job.items[0]
        self.loader = dataset.loader(
            batch_size=first.recipe.batch_size,
            pad=first.recipe.pad,
            device=device,
            seed=first.seed,
            normalizations={normalization for normalization in normalizations if normalization},
        )

    def train(self) -> None:
        """Train all probes; as many at a time as their stored features allow."""
        probes = self.job.items
        for key in dict.fromkeys(map(_group_key, probes)):
            compatible = [probe for probe in probes if _group_key(probe) == key]
            feature_bytes, _ = key
            count = max(1, _FEATURE_BYTES // feature_bytes) if feature_bytes else len(compatible)
            for start in range(0, len(compatible), count):
                self._train_together(compatible[start : start + count])

    def _train_together(self, probes: Sequence[LinearProbe]) -> None:
        trainers = []
        for probe in probes:
            try:
                trainers.append(self._trainer(probe, self.job.weights[probe.fingerprint]))
            except Exception as error:
                self._end(probe, None, error)
        if not trainers:
            return
        train = self._train_on_batches if probes[0].bn_train_mode else self._train_on_features
        for trainer, failure in train(trainers):
            self._end(trainer.probe, trainer, failure)

    def _end(self, probe: LinearProbe, trainer: ProbeTrainer | None, error: Exception | None) -> None:
        if trainer and not error:
            try:
                top1, top5 = trainer.accuracy(self.loader.evaluation(self.evaluation_batch))
            except Exception as failure:
                error = failure
            else:
                self.emit(TrialEnd(ProbeOutcome(probe, "done", None, top1, top5, trainer.loss, trainer.seconds)))
                return
        when = f"epoch {trainer.epoch}" if trainer and trainer.epoch else "before training"
        assert error is not None
        self.emit(TrialEnd(ProbeOutcome(probe, *status_and_reason(error, when))))

    def _end_epoch(self, epoch: int, count: int) -> None:
        self.emit(EpochEnd(self.job, epoch, count))
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise Interrupted("interrupted; the same command continues: `authors` after its last epoch, `frozen` anew")

    def _trainer(self, probe: LinearProbe, weights: Mapping[str, Tensor]) -> ProbeTrainer:
        """A trainer, resumed from the probe's checkpoint if there is one."""
        trainer = ProbeTrainer(probe, weights, self.device)
        if state := self.load(probe.id):
            try:
                trainer.load_state(state)
            except Exception as error:
                log.warning("the checkpoint of %s does not fit (%s): its training starts again", probe.id, error)
                return ProbeTrainer(probe, weights, self.device)
        return trainer

    def _train_on_features(self, trainers: list[ProbeTrainer]) -> Trained:
        """Compute the features of every view, then train all classifiers at once."""
        probe, stack = trainers[0].probe, StackedProbes(trainers)
        for index, augmentation in enumerate(views(probe.views, probe.recipe.pad, self.dataset.info.flip)):
            for batch in self.loader.training_images(self.evaluation_batch, augmentation):
                stack.embed(index, batch)
                self._stop_if_asked()
        stack.fit(self.dataset.labels, self._end_epoch)
        for trainer in trainers:
            yield trainer, stack.errors.get(trainer)

    def _train_on_batches(self, trainers: list[ProbeTrainer]) -> Trained:
        """Train all networks on the same augmented batches, with a checkpoint after each epoch."""
        probe = trainers[0].probe
        remaining = list(trainers)
        for epoch in range(1, probe.recipe.epochs + 1):
            active = [trainer for trainer in remaining if trainer.epoch == epoch - 1]
            errors: dict[ProbeTrainer, Exception] = {}
            for trainer in active:
                trainer.begin_epoch(epoch)
            for number, batch in enumerate(self.loader.epoch(epoch) if active else ()):
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
                        self.emit(Checkpoint(trainer.probe.id, serialize(trainer.state())))
                except Diverged as error:
                    errors[trainer] = error
            remaining = [trainer for trainer in remaining if trainer not in errors]
            yield from errors.items()
            self._end_epoch(epoch, len(trainers))
        for trainer in remaining:
            yield trainer, None


def _group_key(probe: LinearProbe) -> tuple[int, float]:
    """Probes with equal keys are trained together: bytes of stored features (0: none are stored), and learning rate."""
    if probe.bn_train_mode:
        return 0, 0.0
    source = probe.source
    embedding_dim = features(source.arch, source.data.classes, source.data.size).embedding_dim
    return 4 * embedding_dim * probe.views * probe.data.train, probe.lr
