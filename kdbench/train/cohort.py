"""Train the students of a cohort side by side: one batch, one augmentation, one teacher forward, N students."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdbench.data.batches import Loader
from kdbench.data.sources import ImageSet
from kdbench.distill.distiller import Shapes
from kdbench.models import features, info
from kdbench.spec import Cohort, Epoch, Observer, Outcome, Status, Trial
from kdbench.train.checkpoints import Checkpoints, log
from kdbench.train.environment import forget_peak, peak_mib
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.guide import Guide
from kdbench.train.replay import worth_recording
from kdbench.train.shared import Shared
from kdbench.train.student import Diverged, Student, name_of


class LocalExecutor:
    """Trains cohorts in this process on one device; for measurements with epochs of at most `limit` steps."""

    def __init__(
        self, images: ImageSet, device: torch.device, checkpoints: Checkpoints, limit: int | None = None
    ) -> None:
        self.images, self.device, self.checkpoints, self.limit = images, device, checkpoints, limit

    def train(self, cohort: Cohort, teacher: Mapping[str, Tensor] | None, observer: Observer) -> Iterator[Outcome]:
        """Outcomes in the order in which trials end. One student's failure leaves the others as they would be alone.

        Raises: whatever breaks what they share (data, teacher, device memory).
        """
        forget_peak(self.device)
        archs = {trial.arch for trial in cohort.trials} | ({cohort.teacher.arch} if cohort.teacher else set())
        statistics = {info(arch).statistics for arch in archs}
        loader = Loader(
            self.images,
            batch_size=cohort.recipe.batch_size,
            pad=cohort.recipe.pad,
            device=self.device,
            seed=cohort.seed,
            others=[each for each in statistics if each],
            limit=self.limit,
        )
        guide = Guide(cohort, teacher, self.device)
        yield from _Company(self, cohort, loader, guide, observer).train()


class _Company:
    """The students of a cohort on their way."""

    def __init__(
        self, executor: LocalExecutor, cohort: Cohort, loader: Loader, guide: Guide, observer: Observer
    ) -> None:
        self.images, self.device, self.checkpoints = executor.images, executor.device, executor.checkpoints
        self.cohort, self.loader, self.observer = cohort, loader, observer
        self.shared = Shared(loader, guide, self.device)
        self.teacher_top1 = guide.top1(loader.evaluation(EVALUATION_BATCH))
        self.students: list[Student] = []

    def train(self) -> Iterator[Outcome]:
        for trial in self.cohort.trials:
            try:
                self.students.append(self._student(trial))
            except Exception as error:
                _, reason = verdict(error, "before training")
                yield Outcome(trial, "failed", reason, teacher_top1=self.teacher_top1)

        for number in range(1, self.cohort.recipe.pretraining_epochs + 1):
            active = [each for each in self.students if each.first and len(each.first.losses) == number - 1]
            yield from self._steps(-number, active)
            self.shared.clock.mean()
            for student in list(active):
                try:
                    student.end_pretraining_epoch()
                except Exception as error:
                    yield self._leave(student, active, error)
                else:
                    self.checkpoints.save(student.trial.id, student.state())

        for epoch in range(1, self.cohort.recipe.epochs + 1):
            active = [student for student in self.students if len(student.epochs) == epoch - 1]
            if not active:
                continue
            yield from self._steps(epoch, active)
            shared = self.shared.clock.mean() * self.loader.steps
            for student in list(active):
                try:
                    terms = student.check()
                    own = student.own_seconds()
                    top1, top5 = student.accuracy(self.loader.evaluation(EVALUATION_BATCH))
                    val = student.accuracy(self.loader.validation(EVALUATION_BATCH))[0] if self.images.val else None
                except Exception as error:
                    yield self._leave(student, active, error)
                else:
                    student.epochs.append(Epoch(epoch, student.rate, terms, top1, top5, own, shared, val))
                    self.checkpoints.save(student.trial.id, student.state())
            self.observer.epoch(self.cohort, epoch, {each.trial.id: each.epochs[-1] for each in active})
        for student in self.students:
            yield self._ended(student)

    def _student(self, trial: Trial) -> Student:
        data = trial.data
        own = features(trial.arch, data.classes, data.size)
        seen = features(trial.teacher.arch, data.classes, data.size) if trial.teacher else own
        shapes = Shapes(own, seen, data.classes, self.images.train.labels.clone(), info(trial.arch).family)
        student = Student(trial, shapes, self.device)
        if state := self.checkpoints.load(trial.id):
            try:
                student.restore(state)
            except Exception as error:
                log.warning("the checkpoint of %s does not fit (%s): it starts again", trial.id, error)
                return Student(trial, shapes, self.device)
        return student

    def _steps(self, epoch: int, active: list[Student]) -> Iterator[Outcome]:
        """One pass over the training images; students that fail leave."""
        shared, steps = self.shared, self.loader.steps if active else 0
        replayed = worth_recording(self.device, steps)
        for student in active:
            student.begin(epoch, replayed)
        shared.begin(epoch, any(student.method.preact for student in active), replayed)
        for step in range(1, steps + 1):
            shared.advance()
            for student in list(active):
                try:
                    student.step(shared.batch, shared.target)
                    if shared.spoilt():
                        raise RuntimeError("the method changed its batch or the teacher's output in place")
                except Exception as error:
                    yield self._leave(student, active, error)
                    if shared.spoilt():
                        shared.mend()
            for student in active:
                student.join()
            if not active:
                break
            self.observer.step(self.cohort, epoch, step, steps)

    def _leave(self, student: Student, active: list[Student], error: Exception) -> Outcome:
        active.remove(student)
        self.students.remove(student)
        return self._ended(student, error)

    def _ended(self, student: Student, error: Exception | None = None) -> Outcome:
        status: Status = "done"
        facts, weights, reason = {}, None, None
        try:
            if error:
                raise error
            facts, weights = student.facts(), student.weights()
        except Exception as final:
            status, reason = verdict(final, name_of(student.epoch))
        cost = student.cost() | {"cohort_size": len(self.cohort.trials)}
        if (peak := peak_mib(self.device)) is not None:
            cost["peak_mib"] = peak
        return Outcome(student.trial, status, reason, tuple(student.epochs), self.teacher_top1, facts, weights, cost)


def verdict(error: Exception, when: str) -> tuple[Status, str]:
    """Status and one-line reason; an error says where in the method's file it arose."""
    if isinstance(error, Diverged):
        return "diverged", str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours, torchs = Path(__file__).parents[1], Path(torch.__file__).parent
    inside = [frame for frame in frames if not {ours, torchs} & set(Path(frame.filename).parents)]
    place = (inside or frames)[-1]
    first = (str(error).splitlines() or [""])[0]
    return "failed", f"{when}: {type(error).__name__}: {first} ({Path(place.filename).name}, line {place.lineno})"
