"""Train the students of a cohort side by side: one batch, one augmentation, one teacher forward, N students."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import Any

import torch

from kdbench.core.errors import DeviceLost, Interrupted
from kdbench.core.events import Checkpoint, Emit, EpochEnd, StepEnd, TrialEnd
from kdbench.core.files import DiskError
from kdbench.core.jobs import CohortJob
from kdbench.core.record import EpochMetrics, Outcome, Status, failed
from kdbench.core.trial import Trial
from kdbench.data.dataset import Dataset, Loader
from kdbench.data.views import View
from kdbench.distill import registry
from kdbench.distill.step import Shapes
from kdbench.models import features, info
from kdbench.train.checkpoint import CheckpointSchedule, log, serialize
from kdbench.train.cuda_graph import Accelerator, Plain, accelerator
from kdbench.train.device import answers, lost_message, peak_mib, reset_peak_memory
from kdbench.train.evaluate import Accuracy, evaluate, evaluation_batch
from kdbench.train.failures import Diverged, NonfiniteGradient, epoch_name, status_and_reason
from kdbench.train.inputs_ahead import InputsAhead
from kdbench.train.shared_inputs import BATCH, SharedInputs
from kdbench.train.student import Student
from kdbench.train.teacher import Teachers, class_means


class CohortTrainer:
    """The students of a cohort, their shared inputs, and the loop that trains them.

    `load` gives a trial's last checkpoint by its id, `schedule` says when new ones are due. For measurements, `limit`
    shortens every epoch to so many steps, and `on` says where steps run instead of what suits the device. `stop` is
    asked after every step and during evaluation: once it says so, checkpoints are emitted and Interrupted is raised.
    Raises what breaks the data or the teachers, which all students share.
    """

    def __init__(
        self,
        job: CohortJob,
        dataset: Dataset,
        device: torch.device,
        emit: Emit,
        *,
        load: Callable[[str], dict[str, Any] | None] = lambda trial_id: None,
        schedule: CheckpointSchedule | None = None,
        limit: int | None = None,
        on: Accelerator | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        reset_peak_memory(device)
        cohort = job.cohort
        self.job, self.cohort, self.dataset, self.device, self.emit = job, cohort, dataset, device, emit
        self.load, self.schedule, self.stop = load, schedule or CheckpointSchedule(), stop
        requires = [registry.requirements(trial.base, trial.settings) for trial in cohort.trials]
        extra = dict.fromkeys(name for require in requires for name in require.extra_teachers)
        self.teachers = Teachers(cohort, job.weights, device, extra)
        networks = [*self.teachers.teachers, *self.teachers.extra.values()]
        archs = {*(trial.arch for trial in cohort.trials), *(teacher.arch for teacher in networks)}
        self.loader = dataset.loader(
            batch_size=cohort.recipe.batch_size,
            pad=cohort.recipe.pad,
            device=device,
            seed=cohort.seed,
            normalizations=[value for arch in sorted(archs) if (value := info(arch).normalization)],
            limit=limit,
        )
        self.accelerator = on or accelerator(device, self.loader.steps)
        self.inputs = SharedInputs(self.loader, self.teachers, device)
        if self.accelerator.records:
            self.inputs = InputsAhead(self.loader, self.teachers, device, self.accelerator)
        self.evaluation_batch = evaluation_batch(device, dataset.info.size)
        self.teacher_top1 = self.teachers.top1(self.loader.evaluation(self.evaluation_batch))
        self.students: list[Student] = []

    def train(self) -> None:
        """Train all students; one's failure leaves the others as they would be alone."""
        try:
            self._train()
        except BaseException:
            with suppress(RuntimeError):  # of a device that has failed
                self.accelerator.join()  # what was launched ahead would write to memory that is another's by then
            raise

    def _train(self) -> None:
        recipe = self.cohort.recipe
        for trial in self.cohort.trials:
            try:
                self.students.append(self._student(trial, self.accelerator))
            except DiskError:
                raise
            except Exception as error:
                status, reason = status_and_reason(error, "before training")
                self.emit(TrialEnd(Outcome(trial, status, reason, teacher_top1=self.teacher_top1)))

        for epoch in (*range(-1, -recipe.pretraining_epochs - 1, -1), *range(1, recipe.epochs + 1)):
            active = [student for student in self.students if student.is_next(epoch)]
            if not active:
                continue
            self._train_epoch(epoch, active)
            self._end_epoch(epoch, active)
            last = epoch == recipe.epochs
            self._save_checkpoints(due=last or self.schedule.due(abs(epoch)))
            if epoch > 0:
                latest = {student.trial.id: student.epochs[-1] for student in active}
                self.emit(EpochEnd(self.job, epoch, len(active), latest))

        for student in self.students:
            self.emit(TrialEnd(self._outcome(student)))

    def _train_epoch(self, epoch: int, active: list[Student]) -> None:
        """One pass over the training images. A student that fails leaves; one that is ahead waits for the others."""
        steps, inputs = self.loader.steps, self.inputs
        for student in active:
            student.begin_epoch(epoch)
        start = min(student.steps for student in active)
        inputs.begin_epoch(epoch, [student.requires for student in active], start)
        for number in range(start, steps):
            step_inputs = inputs.advance()
            for student in [student for student in active if student.steps == number]:
                try:
                    student.step(step_inputs)
                    if inputs.modified_in_place():
                        raise RuntimeError("the method changed its batch or the teacher's output in place")
                except Exception as error:
                    self._remove(student, active, error)
                    if inputs.modified_in_place():
                        self.accelerator.join()  # others may be reading what is repaired
                        step_inputs = inputs.recompute()
            for student in active:
                student.join()
            if not active:
                break
            self.emit(StepEnd(self.job, epoch, number + 1, steps))
            self._save_checkpoints(due=self.schedule.due())

    def _end_epoch(self, epoch: int, active: list[Student]) -> None:
        """Check that the losses were finite, and evaluate the students in one pass over the test images."""
        shared = self.inputs.seconds_per_step()
        terms = {}
        for student in list(active):
            try:
                terms[student] = student.end_epoch()
            except Exception as error:
                self._remove(student, active, error)
        if epoch < 0:
            return
        seconds = {student: student.seconds() for student in active}
        test = self._evaluate(active, metrics=epoch == self.cohort.recipe.epochs)
        validation = self._evaluate(active, validation=True) if self.dataset.info.val else {}
        for student in list(active):
            on_test, on_validation = test[student], validation.get(student)
            if isinstance(on_test, Exception):
                self._remove(student, active, on_test)
            elif isinstance(on_validation, Exception):
                self._remove(student, active, on_validation)
            elif not all(map(isfinite, on_test.metrics.values())):
                self._remove(student, active, Diverged(f"the test logits were not finite after {epoch_name(epoch)}"))
            else:
                metrics = EpochMetrics(
                    epoch,
                    student.current.lr if student.current else 0.0,
                    terms[student],
                    on_test.top1,
                    on_test.top5,
                    seconds[student],
                    sum(shared.get(part, 0.0) for part in _parts(student)) * self.loader.steps,
                    on_validation.top1 if on_validation else None,
                )
                student.epochs.append(metrics)
                student.metrics = dict(on_test.metrics)

    def _evaluate(
        self, students: list[Student], validation: bool = False, metrics: bool = False
    ) -> dict[Student, Accuracy | Exception]:
        for student in students:
            student.eval()
        images = self.loader.validation if validation else self.loader.evaluation
        networks = {student: student.predict for student in students}
        teacher = self.teachers.log_probabilities if self.teachers.teachers else None
        batches = images(self.evaluation_batch)
        return evaluate(networks, batches, self.device, self._save_checkpoints, metrics=metrics, teacher=teacher)

    def _save_checkpoints(self, due: bool = False) -> None:
        """Emit checkpoints if they are due, or before an orderly stop. Raises Interrupted."""
        stop = self.stop()
        if due or stop:
            for student in self.students:
                if student.has_begun:
                    self.emit(Checkpoint(student.trial.id, serialize(student.state())))
            self.schedule.saved()
        if stop:
            raise Interrupted

    def _student(self, trial: Trial, accelerator: Accelerator) -> Student:
        """A student at its beginning, or where its checkpoint left it."""
        student = build_student(trial, self.dataset, self.teachers, self.loader, accelerator)
        if state := self.load(trial.id):
            try:
                student.load_state(state)
            except Exception as error:
                log.warning("the checkpoint of %s does not fit (%s): it starts again", trial.id, error)
                return build_student(trial, self.dataset, self.teachers, self.loader, accelerator)
        return student

    def _remove(self, student: Student, active: list[Student], error: Exception) -> None:
        """End a student that failed. Raises DeviceLost if the device failed, at which this student may be guiltless."""
        if not answers(self.device):
            reason = f"the device failed, maybe at another student's work: {type(error).__name__}: {error}"
            self.emit(TrialEnd(failed(student.trial, reason.splitlines()[0])))
            raise DeviceLost(lost_message(self.device, error)) from error
        student.close()
        active.remove(student)
        self.students.remove(student)
        if isinstance(error, NonfiniteGradient):
            with suppress(Exception):  # the search may fail as the student did
                error = self._explain(student.trial, error)
        self.emit(TrialEnd(self._outcome(student, error)))

    def _explain(self, trial: Trial, error: NonfiniteGradient) -> Diverged:
        """The error with the terms that caused it: the epoch is rerun alone, up to that step."""
        rerun = self._student(trial, Plain())
        if rerun.is_next(error.epoch):
            rerun.begin_epoch(error.epoch)
            inputs = SharedInputs(self.loader, self.teachers, self.device)
            inputs.begin_epoch(error.epoch, [rerun.requires], rerun.steps)
            while rerun.steps <= error.step:
                step_inputs = inputs.advance()
                if rerun.steps == error.step and (terms := rerun.nonfinite_terms(step_inputs)):
                    return Diverged(error.message(f"term: {', '.join(terms)}"))
                rerun.step(step_inputs)
        return error

    def _outcome(self, student: Student, error: Exception | None = None) -> Outcome:
        cost = student.cost() | {"cohort_size": len(self.cohort.trials)}
        if (peak := peak_mib(self.device)) is not None:
            cost["peak_mib"] = peak
        status: Status = "done"
        extra_info, weights, reason = {}, None, None
        when = epoch_name(student.current.epoch if student.current else 0)
        if error:  # which is not raised here: its frames would hold it, and it the student
            status, reason = status_and_reason(error, when)
        else:
            try:
                extra_info, weights = student.extra_info(), student.weights()
                cost["deployed_parameters"] = student.deployed_parameters()
            except Exception as failure:
                status, reason = status_and_reason(failure, when)
        epochs = tuple(student.epochs)
        metrics = student.metrics if status == "done" else {}
        return Outcome(student.trial, status, reason, epochs, self.teacher_top1, extra_info, weights, cost, metrics)


def _parts(student: Student) -> tuple[View | str, ...]:
    """What of the shared inputs a student would need alone."""
    return BATCH, *student.requires.views, *student.requires.extra_teachers


def build_student(
    trial: Trial, dataset: Dataset, teachers: Teachers, loader: Loader, accelerator: Accelerator | None = None
) -> Student:
    """A student as its training begins, with what its method requires of the teachers.

    Raises ValueError if the method cannot train this pair, or if an extra teacher is missing.
    """
    data, requires = trial.data, registry.requirements(trial.base, trial.settings)
    if untrained := [name for name in requires.extra_teachers if name not in teachers.extra]:
        raise ValueError(f"its extra teacher {untrained[0]!r} was not trained")
    own = features(trial.arch, data.classes, data.size)
    others = tuple(features(source.arch, data.classes, data.size) for source in trial.teachers)
    labels = dataset.labels.clone()
    shapes = Shapes(own, others or (own,), data.classes, labels, info(trial.arch).family)
    teacher_info: dict[str, Any] = {}
    if requires.classifier:
        teacher_info["teacher_classifier"] = teachers.teachers[0].classifier
    if requires.teacher_batch_norms:
        teacher_info["teacher_batch_norms"] = teachers.teachers[0].batch_norms
    if requires.teacher_embeddings or requires.teacher_class_means:
        embeddings = teachers.embeddings(loader, len(labels))
        teacher_info["teacher_embeddings"] = embeddings
        teacher_info["teacher_class_means"] = class_means(embeddings, labels.to(embeddings.device), data.classes)
    return Student(trial, shapes, teachers.device, accelerator, **teacher_info)
