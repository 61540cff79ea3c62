"""The shared inputs of steps that are recorded: made one step ahead, in tensors that stay the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from kdbench.data.dataset import Loader
from kdbench.data.views import View
from kdbench.distill.step import Requires
from kdbench.train.cuda_graph import Accelerator
from kdbench.train.meters import Timer
from kdbench.train.recorded_step import TIMED_STEPS, RecordedStep, Work
from kdbench.train.shared_inputs import BATCH, SharedInputs, StepInputs
from kdbench.train.teacher import Teachers

SLOTS = 2


class InputsAhead(SharedInputs):
    """Make the next step's inputs, on a stream of their own, while the students train on the current ones.

    The two sets of tensors (slots) that take turns stay the same as long as the same is required, so that recorded
    steps may read them.
    """

    def __init__(self, loader: Loader, teachers: Teachers, device: torch.device, accelerator: Accelerator) -> None:
        super().__init__(loader, teachers, device)
        self.accelerator = accelerator
        self.recorded = RecordedStep("the teacher", accelerator)
        self._timer, self._seconds, self._timed = Timer(device), 0.0, 0
        self._slots: dict[int, StepInputs] = {}
        self._ahead: StepInputs | None = None

    def begin_epoch(self, epoch: int, requires: Collection[Requires], start: int = 0) -> None:
        self.accelerator.join()
        super().begin_epoch(epoch, requires, start)
        self._ahead = None
        if self._changed:
            self._slots, self._timed = {}, 0
            self.recorded.restart()

    def advance(self) -> StepInputs:
        self._step += 1
        inputs = self._ahead or self._launch(self._step)
        self.recorded.join()
        self._use(inputs)
        following = self._step + 1
        self._ahead = self._launch(following) if following < self.loader.steps else None
        return inputs

    def seconds_per_step(self) -> dict[View | str, float]:
        """Of the steps that were timed last; views and extra teachers are in BATCH, which is replayed as a whole."""
        self._seconds = self._timer.mean() or self._seconds
        return {BATCH: self._seconds}

    def recompute(self) -> StepInputs:
        fresh = self._inputs(self._step, next(self.loader.epoch(self._epoch, self._step)))
        copy_all(fresh.tensors(), self.current.tensors())
        return self._use(self.current)

    def _launch(self, step: int) -> StepInputs:
        """Begin to make a step's inputs; `join` must follow before they are used."""
        slot = step % SLOTS
        settled = slot in self._slots and (self.recorded.settled(slot) or not self._slots[slot].outputs())
        alone = self._timed < TIMED_STEPS and settled
        if alone:
            self.accelerator.join()
            self._timed += 1
        with self._timer.running() if alone else nullcontext():
            self.accelerator.fork(self.recorded.stream)
            with self.recorded.stream.running():
                batch = next(self._batches)
                if slot not in self._slots:  # copied, since a batch may be a part of what serves the whole epoch
                    self._slots[slot] = replace(deepcopy(self._inputs(step, batch)), slot=slot)
                    return self._slots[slot]
                views = {view: self.loader.view(view, self._epoch, step, batch) for view in self._views}
                inputs = self._slots[slot]
                fresh = [*batch.tensors(), *(tensor for view in views.values() for tensor in view.tensors())]
                copy_all(fresh, inputs.images())
            if inputs.outputs():
                self.recorded(slot, inputs, Work(lambda: self._update_outputs(inputs)))
            if alone:
                self.recorded.join()
        return inputs

    def _update_outputs(self, inputs: StepInputs) -> None:
        views = {view: shared.view for view, shared in inputs.views.items()}
        copy_all(self._with_outputs(inputs.batch, views).outputs(), inputs.outputs())


def copy_all(source: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Copy each tensor into its counterpart."""
    for value, static in zip(source, into, strict=True):
        static.copy_(value)
