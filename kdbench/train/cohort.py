"""Train the students of a cohort side by side: one batch, one augmentation, one teacher forward, N students."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batches import Batch, Loader
from kdbench.data.sources import ImageSet
from kdbench.distill.distiller import Shapes
from kdbench.models import features, info
from kdbench.models.output import Output
from kdbench.spec import Cohort, Epoch, Observer, Outcome, Trial
from kdbench.train.checkpoints import Checkpoints, log
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.guide import Guide
from kdbench.train.stopwatch import Stopwatch
from kdbench.train.student import Diverged, Student, name_of


class LocalExecutor:
    """Trains cohorts in this process on one device."""

    def __init__(self, images: ImageSet, device: torch.device, checkpoints: Checkpoints) -> None:
        self.images, self.device, self.checkpoints = images, device, checkpoints

    def train(self, cohort: Cohort, teacher: Mapping[str, Tensor] | None, observer: Observer) -> Iterator[Outcome]:
        """Outcomes in the order in which trials end. One student's failure leaves the others as they would be alone.

        Raises: whatever breaks what they share (data, teacher, device memory).
        """
        device = self.device
        archs = {trial.arch for trial in cohort.trials} | ({cohort.teacher.arch} if cohort.teacher else set())
        statistics = {info(arch).statistics for arch in archs}
        loader = Loader(
            self.images,
            batch_size=cohort.recipe.batch_size,
            pad=cohort.recipe.pad,
            device=device,
            seed=cohort.seed,
            others=[each for each in statistics if each],
        )
        guide = Guide(cohort, teacher, device)
        clock = Stopwatch(device)
        teacher_top1 = guide.top1(loader.evaluation(EVALUATION_BATCH))

        def ended(student: Student, error: Exception | None = None) -> Outcome:
            epochs = tuple(student.epochs)
            if error is None:
                try:
                    facts = student.facts()
                except Exception as late:
                    error = late
                else:
                    return Outcome(student.trial, "done", None, epochs, teacher_top1, facts, student.weights())
            status, reason = _verdict(error, name_of(student.epoch))
            return Outcome(student.trial, status, reason, epochs, teacher_top1)

        students: list[Student] = []
        for trial in cohort.trials:
            try:
                students.append(self._student(trial))
            except Exception as error:
                _, reason = _verdict(error, "before training")
                yield Outcome(trial, "failed", reason, teacher_top1=teacher_top1)

        def steps(epoch: int, active: list[Student]) -> Iterator[Outcome]:
            """One pass over the training images; students that fail leave `active` and `students`."""
            preact = any(student.method.preact for student in active)
            for student in active:
                student.begin(epoch)
            batches = loader.epoch(epoch)
            for step in range(loader.steps if active else 0):
                with clock.running():
                    batch = next(batches)
                    target = guide(batch, preact)
                before = _versions(batch, target)
                for student in list(active):
                    try:
                        with student.clock.running():
                            student.step(batch, target)
                        if _versions(batch, target) != before:
                            raise RuntimeError("the method changed its batch or the teacher's output in place")
                    except Exception as error:
                        yield from leave(student, active, error)
                        if _versions(batch, target) != before:  # the others get theirs as they should be
                            batch = next(islice(loader.epoch(epoch), step, None))
                            target = guide(batch, preact)
                            before = _versions(batch, target)
                if not active:
                    break
                observer.step(cohort, epoch, step + 1, loader.steps)

        def leave(student: Student, active: list[Student], error: Exception) -> Iterator[Outcome]:
            active.remove(student)
            students.remove(student)
            yield ended(student, error)

        for number in range(1, cohort.recipe.pretraining_epochs + 1):
            active = [student for student in students if student.first and len(student.first.losses) == number - 1]
            yield from steps(-number, active)
            clock.total()
            for student in list(active):
                try:
                    student.end_pretraining_epoch()
                except Exception as error:
                    yield from leave(student, active, error)
                else:
                    self.checkpoints.save(student.trial.id, student.state())

        for epoch in range(1, cohort.recipe.epochs + 1):
            active = [student for student in students if len(student.epochs) == epoch - 1]
            if not active:
                continue
            yield from steps(epoch, active)
            shared = clock.total()
            for student in list(active):
                try:
                    terms = student.check()
                    own = student.clock.total()
                    top1, top5 = student.accuracy(loader.evaluation(EVALUATION_BATCH))
                except Exception as error:
                    yield from leave(student, active, error)
                else:
                    student.epochs.append(Epoch(epoch, student.rate, terms, top1, top5, own, shared))
                    self.checkpoints.save(student.trial.id, student.state())
            observer.epoch(cohort, epoch, {student.trial.id: student.epochs[-1] for student in active})
        for student in students:
            yield ended(student)

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


def _versions(batch: Batch, target: Output) -> list[int]:
    """How often each tensor that students share was changed in place; known without asking the device."""
    shared = [batch.images, batch.labels, batch.indices, *batch.others.values(), target.logits, target.embedding]
    return [tensor._version for tensor in (*shared, *target.maps, *(target.preact_maps or ()))]


def _verdict(error: Exception, when: str) -> tuple[Any, str]:
    """Status and one-line reason; an error says where in the method's file it arose."""
    if isinstance(error, Diverged):
        return "diverged", str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours, torchs = Path(__file__).parents[1], Path(torch.__file__).parent
    inside = [frame for frame in frames if not {ours, torchs} & set(Path(frame.filename).parents)]
    place = (inside or frames)[-1]
    first = (str(error).splitlines() or [""])[0]
    return "failed", f"{when}: {type(error).__name__}: {first} ({Path(place.filename).name}, line {place.lineno})"
