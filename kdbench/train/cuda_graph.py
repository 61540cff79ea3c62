"""Device work that is the same in every step, on tensors at fixed places: recorded once an epoch, then replayed.

On CUDA a recording is a graph: one launch instead of thousands. Teacher and students have a graph each, and a stream
each, so that students run at the same time, one that fails leaves the normalizations as they are, and each one's random
numbers are its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from kdbench.data.resident import Batch

T = TypeVar("T")

PLAIN = 2
"""Steps of an epoch before a recording: cuDNN chooses its algorithms, momentum and memories come to be."""

SHORTEST = 50
"""Steps of an epoch from which on a recording is worth its making."""

log = logging.getLogger("kdbench")


def use_cuda_graph(device: torch.device, steps: int) -> bool:
    """Whether an epoch of so many steps is replayed on this device. CPUs have nothing to gain."""
    return device.type == "cuda" and steps >= SHORTEST


class StaticBatch:
    """The fixed places of a batch: the first one's tensors, into which the later ones are copied."""

    def __init__(self) -> None:
        self.batch: Batch | None = None

    def fill(self, batch: Batch) -> Batch:
        """The same `Batch` every time, with the content of the new one."""
        if self.batch is None:
            self.batch = batch
        else:
            for place, fresh in zip(self.batch.tensors(), batch.tensors(), strict=True):
                place.copy_(fresh)
        return self.batch


class CudaGraphStep(Generic[T]):
    """Work that is done plainly for the first steps, then recorded with the tensors of that step, then replayed.

    What cannot be recorded (a method that reads a value back, say) goes on plainly, with one line in the log.
    """

    def __init__(self, name: str, work: Callable[..., T], device: torch.device) -> None:
        self.name, self.work, self.calls = name, work, 0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._again: Callable[[], T] | None = None

    @property
    def plain(self) -> bool:
        """Whether the next call still runs plainly or records: its time is not that of a step."""
        return self.calls <= PLAIN

    def __call__(self, generator: torch.Generator | None, *places: Any) -> T:
        """Do it. `places` are the work's arguments; a recording keeps those it was made with.

        `generator` is what the work draws from beside torch's own. On CUDA `join` must follow before its results are
        used, and before the places are filled again.
        """
        self.calls += 1
        if self.stream is None:
            if self.calls == PLAIN + 1:
                self._again = partial(self.work, *places)
            return self._again() if self._again else self.work(*places)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.calls == PLAIN + 1:
                self._record(generator, *places)
            return self._again() if self._again else self.work(*places)

    def join(self) -> None:
        """What is launched after this waits for the work."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _record(self, generator: torch.Generator | None, *places: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        if generator is not None:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                result = self.work(*places)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            log.warning("%s runs without a CUDA graph: %s: %s", self.name, type(error).__name__, first)
            return

        def again() -> T:
            graph.replay()
            return result

        self._again = again
