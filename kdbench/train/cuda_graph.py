"""Where the work of a step runs: the streams of a device, and CUDA graphs that are recorded on them.

Replaying a graph is one launch instead of thousands. The teachers and each student have a graph and a stream of their
own, so that students run at the same time, one that fails leaves the others as they are, and each one's random numbers
are its own. `Cuda` does that; `Plain` is for devices on which nothing is recorded; tests emulate recording on a CPU.
"""

from __future__ import annotations

import gc
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch

SHORTEST = 50
"""Steps of an epoch from which on recording pays."""

REPAIRED = (2, 13)
"""The torch version from which on every graph has its own state of the default generator, and a recording that failed
leaves allocator and generators as they were (pytorch#176752, #180395)."""


SYNCHRONIZES = "called a synchronizing CUDA operation"
"""In torch's warnings; that it warns of this, once a process, is another one."""


class Stream(ABC):
    """A queue of work; queues may run at the same time, unless one waits for another."""

    @abstractmethod
    def running(self) -> AbstractContextManager[Any]:
        """What is launched within is queued here."""

    @abstractmethod
    def wait_for(self, other: Any) -> None:
        """What is queued here from now on waits for all that `other` has been given."""


class Accelerator(ABC):
    """The streams of a device. Work is queued on `main` unless a stream of its own was forked from it."""

    main: Stream
    records = False
    """Whether steps are recorded here at all."""
    can_record = True
    """Whether further ones can be; what was recorded can be replayed in any case."""
    shares_default_generator = False
    """Whether graphs that run at the same time would overwrite each other's state of the default generator."""

    def __init__(self) -> None:
        self._forked: dict[Stream, None] = {}

    @abstractmethod
    def stream(self) -> Stream:
        """A new one."""

    def pool(self) -> Any:
        """A memory pool for recordings that are never replayed at the same time."""
        return None

    def record(
        self, stream: Stream, work: Callable[[], object], generator: torch.Generator | None, pool: Any
    ) -> Callable[[], None]:
        """Record what the work launches, without running it; the result runs it.

        `generator` is what it draws from beside torch's own. Raises what the work raises, and what forbids recording.
        """
        raise NotImplementedError

    def host_states(self) -> tuple[object, ...]:
        """The states of the host's random generators that a step must not draw from."""
        name, keys, *rest = np.random.get_state(legacy=True)
        return random.getstate(), (name, keys.tobytes(), *rest)  # type: ignore[union-attr]

    def default_generator_state(self) -> torch.Tensor:
        """The state of the generator that dropout draws from."""
        return torch.default_generator.get_state()

    def synchronizations(self) -> AbstractContextManager[list[str]]:
        """What made the host wait for the device within; complete at its end."""
        return nullcontext([])

    def fork(self, stream: Stream) -> None:
        """What is queued on a stream from now on waits for `main`."""
        stream.wait_for(self.main)
        self._forked[stream] = None

    def join(self, stream: Stream | None = None) -> None:
        """What is queued on `main` from now on waits for a stream, or for all that were forked."""
        for forked in [stream] if stream else list(self._forked):
            if forked in self._forked:
                self.main.wait_for(forked)
                del self._forked[forked]


class _Only(Stream):
    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait_for(self, other: Any) -> None:
        pass


class Plain(Accelerator):
    """One queue, and nothing recorded: a CPU, or epochs too short to pay for it."""

    main = _Only()

    def stream(self) -> Stream:
        return self.main


class CudaStream(Stream):
    """A stream of a CUDA device."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.cuda = stream

    def running(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.cuda)

    def wait_for(self, other: CudaStream) -> None:
        self.cuda.wait_stream(other.cuda)


class Cuda(Accelerator):
    """A CUDA device. One object serves the whole process, see `accelerator`."""

    records = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.main = CudaStream(torch.cuda.default_stream(device))
        self.shares_default_generator = torch_version() < REPAIRED

    def stream(self) -> CudaStream:
        return CudaStream(torch.cuda.Stream(self.device))

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def record(
        self, stream: Stream, work: Callable[[], object], generator: torch.Generator | None, pool: Any
    ) -> Callable[[], None]:
        assert isinstance(stream, CudaStream)
        graph = torch.cuda.CUDAGraph()
        register = getattr(graph, "register_generator_state", None)  # deprecated, where generators register themselves
        if generator is not None and register is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                register(generator)
        # Workspaces of cuBLAS are then made in the recording's own pool: others are freed with any graph of the stream.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        failure: Exception | None = None
        try:
            with _no_collection(), stream.running():  # torch leaves the stream current if the recording cannot end
                try:
                    with torch.cuda.graph(graph, pool=pool, stream=stream.cuda):
                        try:
                            work()
                        except Exception as error:
                            failure = error  # the recording ends in an orderly way, if it can
                except Exception:
                    self.can_record = torch_version() >= REPAIRED
                    raise
            if failure is not None:
                raise failure
        finally:
            failure = None  # its frames hold the student
        return graph.replay

    def host_states(self) -> tuple[object, ...]:
        return *super().host_states(), torch.default_generator.get_state().numpy().tobytes()

    def default_generator_state(self) -> torch.Tensor:
        return torch.cuda.default_generators[self.device.index or 0].get_state()

    @contextmanager
    def synchronizations(self) -> Iterator[list[str]]:
        found: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        for warning in caught:
            if SYNCHRONIZES in str(warning.message):
                found.append(f"{warning.filename}, line {warning.lineno}")
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected within: a graph that is destroyed while another is recorded breaks that one
    (pytorch#161037).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def torch_version() -> tuple[int, int]:
    """Of the running torch: (2, 11)."""
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


def accelerator(device: torch.device, steps: int) -> Accelerator:
    """For epochs of so many steps on a device."""
    return _cuda(device) if device.type == "cuda" and steps >= SHORTEST else Plain()


@cache
def _cuda(device: torch.device) -> Cuda:
    return Cuda(device)
