"""CUDA graphs: the device work of a step, captured once an epoch and then replayed.

Replaying is one launch instead of thousands. The teachers and each student have a graph and a stream of their own, so
that students run at the same time, one that fails leaves the others as they are, and each one's random numbers are its
own. A captured step reads and writes fixed (static) tensors. On a CPU the same code runs without a graph, for tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("kdbench")

T = TypeVar("T")

WARM_UP = 2
"""Steps of an epoch before the capture, so that cuDNN's autotuning, momentum buffers and memories are settled."""

SHORTEST = 50
"""Steps of an epoch from which on capturing pays."""


class HasTensors(Protocol):
    def tensors(self) -> tuple[Tensor, ...]: ...


B = TypeVar("B", bound=HasTensors)


def use_cuda_graph(device: torch.device, steps: int) -> bool:
    """Whether to capture the steps of an epoch of this length. CPUs have nothing to gain."""
    return device.type == "cuda" and steps >= SHORTEST


class StaticBuffers(Generic[B]):
    """The tensors of the first batch, into which the later ones are copied."""

    def __init__(self) -> None:
        self._static: B | None = None

    def fill(self, batch: B) -> B:
        """The same object every time, with the content of the new batch."""
        if self._static is None:
            self._static = batch
        else:
            for static, fresh in zip(self._static.tensors(), batch.tensors(), strict=True):
                static.copy_(fresh)
        return self._static


class CudaGraphStep(Generic[T]):
    """A function of static tensors: run eagerly for the first steps, then captured, then replayed.

    What cannot be captured (a method that reads a value back, say) goes on eagerly, with one line in the log.
    """

    def __init__(self, name: str, function: Callable[..., T], device: torch.device) -> None:
        self.name, self.function, self.calls = name, function, 0
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._replay: Callable[[], T] | None = None

    @property
    def warming_up(self) -> bool:
        """Whether the next call runs eagerly or captures: its time is not that of a replayed step."""
        return self.calls <= WARM_UP

    def __call__(self, generator: torch.Generator | None, *arguments: Any) -> T:
        """Run the function; after the capture it reads the arguments that it was captured with.

        `generator` is what it draws from beside torch's own. `join` must follow before its results are used, and before
        the static tensors are filled again.
        """
        self.calls += 1
        if self.stream is None:
            if self.calls == WARM_UP + 1:
                self._replay = partial(self.function, *arguments)
            return self._replay() if self._replay else self.function(*arguments)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            if self.calls == WARM_UP + 1:
                self._capture(generator, *arguments)
            return self._replay() if self._replay else self.function(*arguments)

    def join(self) -> None:
        """What is launched after this waits for the step."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self, generator: torch.Generator | None, *arguments: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        if generator is not None:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                result = self.function(*arguments)
        except Exception as error:
            message = (str(error).splitlines() or [""])[0]
            log.warning("%s runs without a CUDA graph: %s: %s", self.name, type(error).__name__, message)
            return

        def replay() -> T:
            graph.replay()
            return result

        self._replay = replay
