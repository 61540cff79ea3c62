"""What the students of a cohort share in a step: the batch, its views, and the teachers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.data.dataset import Batch, Loader, ViewBatch
from kdbench.data.views import View
from kdbench.distill.step import Requires
from kdbench.models.output import Output
from kdbench.train.meters import Timer
from kdbench.train.teacher import Teacher, Teachers

BATCH = "batch"
"""What every student of a cohort shares, in `SharedInputs.seconds_per_step`."""


@dataclass(frozen=True)
class SharedView:
    """A view of the step's batch, and the teachers' outputs for it."""

    view: ViewBatch
    teachers: tuple[Output, ...]


@dataclass(frozen=True, eq=False)
class StepInputs:
    """All that a student's step reads and must not change."""

    batch: Batch
    teachers: tuple[Output, ...]
    views: Mapping[View, SharedView]
    extra: Mapping[str, Output]
    slot: int = 0  # which set of tensors this is, where steps are recorded for each

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        return self.images() + self.outputs()

    def images(self) -> list[Tensor]:
        """All tensors of the batch and its views, in a fixed order."""
        return [*self.batch.tensors(), *(tensor for view in self.views.values() for tensor in view.view.tensors())]

    def outputs(self) -> list[Tensor]:
        """All tensors of the teachers' outputs, in a fixed order."""
        views = (output for view in self.views.values() for output in view.teachers)
        return [tensor for output in (*self.teachers, *self.extra.values(), *views) for tensor in output.tensors()]


class SharedInputs:
    """Compute each step's inputs once for all students; recompute them if a student modified them in place."""

    def __init__(self, loader: Loader, teachers: Teachers, device: torch.device) -> None:
        self.loader, self.teachers, self.device = loader, teachers, device
        self._timers: dict[View | str, Timer] = {}  # by what they time
        self._timed_steps = 0
        self._compiles = any(teacher.compiles for teacher in (*teachers.teachers, *teachers.extra.values()))
        self._required: object = None
        self.current: StepInputs

    def begin_epoch(self, epoch: int, requires: Collection[Requires], start: int = 0) -> None:
        """Prepare for an epoch from step `start` on, for students that require this."""
        self._epoch, self._step = epoch, start - 1
        self._views = tuple(dict.fromkeys(view for require in requires for view in require.views))
        self._extra = tuple(dict.fromkeys(name for require in requires for name in require.extra_teachers))
        self._requested = {
            name: any(getattr(require, name) for require in requires)
            for name in ("pre_activations", "classifier", "last_map")
        }
        before, self._required = self._required, (self._views, self._extra, tuple(self._requested.items()))
        self._changed = self._required != before
        self._compiling = self._compiles and self._changed
        self._batches = self.loader.epoch(epoch, start)

    def advance(self) -> StepInputs:
        """The next step's inputs."""
        self._step += 1
        self._timed_steps += 1
        with self._timing(BATCH):
            batch = next(self._batches)
        inputs = self._inputs(self._step, batch, self._timing)
        if self._compiling:  # no epoch costs what the first step does
            self._compiling, self._timers, self._timed_steps = False, {}, 0
        return self._use(inputs)

    def seconds_per_step(self) -> dict[View | str, float]:
        """Since the last call, by what it was spent on: BATCH, which is the batch and the teachers' outputs for it,
        each view, and each extra teacher.
        """
        steps, self._timed_steps = max(1, self._timed_steps), 0
        return {part: timer.total() / steps for part, timer in self._timers.items()}

    def _timing(self, part: View | str) -> AbstractContextManager[None]:
        return self._timers.setdefault(part, Timer(self.device)).running()

    def modified_in_place(self) -> bool:
        """Whether a student changed some of the current inputs; known without asking the device."""
        return self._versions() != self._unmodified

    def recompute(self) -> StepInputs:
        """The current step's inputs as they should be; nothing else may be running."""
        return self._use(self._inputs(self._step, next(self.loader.epoch(self._epoch, self._step))))

    def _use(self, inputs: StepInputs) -> StepInputs:
        self.current = inputs
        self._unmodified = self._versions()
        return inputs

    def _inputs(
        self,
        step: int,
        batch: Batch,
        timing: Callable[[View | str], AbstractContextManager[Any]] = nullcontext,
    ) -> StepInputs:
        """The views of a step's batch, and the teachers' outputs for all of them."""
        views = {}
        for view in self._views:
            with timing(view):
                views[view] = self.loader.view(view, self._epoch, step, batch)
        return self._with_outputs(batch, views, timing)

    def _with_outputs(
        self,
        batch: Batch,
        views: Mapping[View, ViewBatch],
        timing: Callable[[View | str], AbstractContextManager[Any]] = nullcontext,
    ) -> StepInputs:
        shared, extra = dict[View, SharedView](), dict[str, Output]()
        with timing(BATCH):
            teachers = self._outputs(batch)
        for view, content in views.items():
            with timing(view):
                shared[view] = SharedView(content, self._outputs(content.batch))
        for name in (name for name in self.teachers.extra if name in self._extra):
            with timing(name):
                extra[name] = self._output(self.teachers.extra[name], batch)
        return StepInputs(batch, teachers, shared, extra)

    def _outputs(self, batch: Batch) -> tuple[Output, ...]:
        return tuple(self._output(teacher, batch) for teacher in self.teachers.teachers)

    def _output(self, teacher: Teacher, batch: Batch) -> Output:
        return teacher(batch, **self._requested)

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self.current.tensors()]
