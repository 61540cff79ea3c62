"""What the students of a cohort share in a step: the batch, and what the teacher says of it."""

from __future__ import annotations

import torch

from kdbench.data.resident import Batch, Loader
from kdbench.models.output import Output
from kdbench.train.cuda_graph import CudaGraphStep, StaticBatch
from kdbench.train.meters import Timer
from kdbench.train.teacher import Teacher


class Shared:
    """Serves each step of an epoch once for all students, and again where one of them modified_in_place it."""

    def __init__(self, loader: Loader, guide: Teacher, device: torch.device) -> None:
        self.loader, self.guide, self.device = loader, guide, device
        self.clock = Timer(device)
        self.batch: Batch
        self.target: Output

    def begin(self, epoch: int, pre_activations: bool, replayed: bool, start: int = 0) -> None:
        """Make ready for an epoch from step `start` on; where it is replayed, everything keeps its place from the
        recording on."""
        self._epoch, self._step, self._preact = epoch, start - 1, pre_activations
        self._batches = self.loader.epoch(epoch, start)
        self._slots = StaticBatch() if replayed else None
        self._replay = CudaGraphStep("the teacher", self.guide, self.device) if replayed else None

    def advance(self) -> None:
        """The next batch, and the teacher's output."""
        self._step += 1
        with self.clock.running():
            self._serve(next(self._batches))

    def _serve(self, batch: Batch) -> None:
        self.batch = self._slots.fill(batch) if self._slots else batch
        if self._replay:
            self.target = self._replay(None, self.batch, self._preact)
            self._replay.join()
        else:
            self.target = self.guide(self.batch, self._preact)
        self._versions = self._count()

    def modified_in_place(self) -> bool:
        """Whether a student changed something of this step in place; known without asking the device."""
        return self._count() != self._versions

    def recompute(self) -> None:
        """Make this step's tensors anew, so that the others get theirs as they should be."""
        self._serve(next(self.loader.epoch(self._epoch, self._step)))

    def _count(self) -> list[int]:
        return [tensor._version for tensor in (*self.batch.tensors(), *self.target.tensors())]
