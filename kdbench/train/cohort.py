"""Train the students of a cohort side by side: one batch, one augmentation, one teacher forward, N students."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdbench.core.errors import Interrupted
from kdbench.core.events import Observer
from kdbench.core.files import DiskError
from kdbench.core.record import EpochMetrics, Outcome, Status
from kdbench.core.trial import Cohort, Trial
from kdbench.data.resident import Loader
from kdbench.data.sources import ImageSet
from kdbench.distill.distiller import Shapes
from kdbench.models import features, info
from kdbench.train.checkpoint import Checkpoints, log
from kdbench.train.cuda_graph import use_cuda_graph
from kdbench.train.device import forget_peak, is_out_of_memory, peak_mib
from kdbench.train.evaluate import EVALUATION_BATCH
from kdbench.train.shared_inputs import Shared
from kdbench.train.student import Diverged, NonfiniteGradient, Student, name_of
from kdbench.train.teacher import Teacher


class LocalExecutor:
    """Trains cohorts in this process on one device; for measurements with epochs of at most `limit` steps.

    `stop` is asked after every step: once it says so, states are kept and Interrupted is raised.
    """

    def __init__(
        self,
        images: ImageSet,
        device: torch.device,
        checkpoints: Checkpoints,
        limit: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.images, self.device, self.checkpoints, self.limit, self.stop = images, device, checkpoints, limit, stop

    def train(self, cohort: Cohort, teacher: Mapping[str, Tensor] | None, observer: Observer) -> Iterator[Outcome]:
        """Outcomes in the order in which trials end. One student's failure leaves the others as they would be alone.

        A cohort that does not fit into memory goes on in two parts, and these likewise.
        Raises: whatever else breaks what they share (data, teacher), DiskError, Interrupted.
        """
        left = {trial.id: trial for trial in cohort.trials}
        try:
            for outcome in self._together(cohort, teacher, observer):
                del left[outcome.trial.id]
                yield outcome
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here, where nothing holds the frames of what failed, can its memory be had again.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        trials = list(left.values())
        if len(trials) == 1:
            yield Outcome(trials[0], "failed", "out of memory, although it was trained alone")
            return
        half = (len(trials) + 1) // 2
        log.warning("out of memory with %d students: they go on %d at a time", len(trials), half)
        for part in (trials[:half], trials[half:]):
            for outcome in self.train(cohort.with_trials(part), teacher, observer):
                yield replace(outcome, cost={**outcome.cost, "split_from": len(trials)})

    def _together(self, cohort: Cohort, teacher: Mapping[str, Tensor] | None, observer: Observer) -> Iterator[Outcome]:
        forget_peak(self.device)
        archs = {trial.arch for trial in cohort.trials} | ({cohort.teacher.arch} if cohort.teacher else set())
        normalizations = {info(arch).normalization for arch in archs}
        loader = Loader(
            self.images,
            batch_size=cohort.recipe.batch_size,
            pad=cohort.recipe.pad,
            device=self.device,
            seed=cohort.seed,
            normalizations=[each for each in normalizations if each],
            limit=self.limit,
        )
        guide = Teacher(cohort, teacher, self.device)
        yield from CohortTrainer(self, cohort, loader, guide, observer).train()


class CohortTrainer:
    """The students of a cohort on their way."""

    def __init__(
        self, executor: LocalExecutor, cohort: Cohort, loader: Loader, guide: Teacher, observer: Observer
    ) -> None:
        self.images, self.device, self.checkpoints = executor.images, executor.device, executor.checkpoints
        self.stop = executor.stop
        self.cohort, self.loader, self.observer = cohort, loader, observer
        self.shared = Shared(loader, guide, self.device)
        self.teacher_top1 = guide.top1(loader.evaluation(EVALUATION_BATCH))
        self.students: list[Student] = []

    def train(self) -> Iterator[Outcome]:
        for trial in self.cohort.trials:
            try:
                self.students.append(self._student(trial))
            except DiskError:
                raise
            except Exception as error:
                _, reason = _own(error, "before training")
                yield Outcome(trial, "failed", reason, teacher_top1=self.teacher_top1)

        for number in range(1, self.cohort.recipe.pretraining_epochs + 1):
            active = [student for student in self.students if student.is_next(-number)]
            yield from self._steps(-number, active)
            self.shared.clock.mean()
            for student in list(active):
                try:
                    student.end_pretraining_epoch()
                except Exception as error:
                    yield self._leave(student, active, error)
            self._pause(self.checkpoints.due(number))

        for epoch in range(1, self.cohort.recipe.epochs + 1):
            active = [student for student in self.students if student.is_next(epoch)]
            if not active:
                continue
            yield from self._steps(epoch, active)
            shared = self.shared.clock.mean() * self.loader.steps
            for student in list(active):
                try:
                    terms = student.check()
                    own = student.student_seconds()
                    top1, top5 = student.accuracy(self.loader.evaluation(EVALUATION_BATCH))
                    val = student.accuracy(self.loader.validation(EVALUATION_BATCH))[0] if self.images.val else None
                except Exception as error:
                    yield self._leave(student, active, error)
                else:
                    student.epochs.append(EpochMetrics(epoch, student.rate, terms, top1, top5, own, shared, val))
                self._pause()
            self._pause(epoch == self.cohort.recipe.epochs or self.checkpoints.due(epoch))
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

    def _pause(self, due: bool = False) -> None:
        """Keep states where that is due, or before an orderly end. Raises Interrupted, DiskError."""
        stop = self.stop()
        if due or stop:
            begun = [each for each in self.students if each.epochs or each.steps or each.first]
            self.checkpoints.save((each.trial.id, each.state()) for each in begun)
        if stop:
            raise Interrupted

    def _steps(self, epoch: int, active: list[Student]) -> Iterator[Outcome]:
        """One pass over the training images; students that fail leave. One that is ahead waits for the others."""
        shared, steps = self.shared, self.loader.steps if active else 0
        replayed = use_cuda_graph(self.device, steps)
        for student in active:
            student.begin(epoch, replayed)
        start = min((student.steps for student in active), default=0)
        shared.begin(epoch, any(student.method.pre_activations for student in active), replayed, start)
        for step in range(start + 1, steps + 1):
            shared.advance()
            for student in [each for each in active if each.steps < step]:
                try:
                    student.step(shared.batch, shared.target)
                    if shared.modified_in_place():
                        raise RuntimeError("the method changed its batch or the teacher's output in place")
                except Exception as error:
                    yield self._leave(student, active, error)
                    if shared.modified_in_place():
                        shared.recompute()
            for student in active:
                student.join()
            if not active:
                break
            self.observer.step(self.cohort, epoch, step, steps)
            self._pause(self.checkpoints.due())

    def _leave(self, student: Student, active: list[Student], error: Exception) -> Outcome:
        active.remove(student)
        self.students.remove(student)
        if isinstance(error, NonfiniteGradient):
            with suppress(Exception):  # the search may fail as the student did
                error = self._explained(student.trial, error)
        return self._ended(student, error)

    def _explained(self, trial: Trial, error: NonfiniteGradient) -> Diverged:
        """The error with the terms that did it: a twin goes through the epoch again, up to that step."""
        twin = self._student(trial)
        if twin.is_next(error.epoch):
            twin.begin(error.epoch, False)
            self.shared.begin(error.epoch, twin.method.pre_activations, False, twin.steps)
            while twin.steps <= error.step:
                self.shared.advance()
                if twin.steps == error.step and (terms := twin.nonfinite_terms(self.shared.batch, self.shared.target)):
                    return Diverged(error.words(f"term: {', '.join(terms)}"))
                twin.step(self.shared.batch, self.shared.target)
        return error

    def _ended(self, student: Student, error: Exception | None = None) -> Outcome:
        status: Status = "done"
        facts, weights, reason = {}, None, None
        try:
            if error:
                raise error
            facts, weights = student.extra_info(), student.weights()
        except Exception as final:
            status, reason = _own(final, name_of(student.epoch))
        cost = student.cost() | {"cohort_size": len(self.cohort.trials)}
        if (peak := peak_mib(self.device)) is not None:
            cost["peak_mib"] = peak
        return Outcome(student.trial, status, reason, tuple(student.epochs), self.teacher_top1, facts, weights, cost)


def _own(error: Exception, when: str) -> tuple[Status, str]:
    """The verdict on one student; lack of memory is not its fault alone, and is raised again."""
    if is_out_of_memory(error):
        raise error
    return verdict(error, when)


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
