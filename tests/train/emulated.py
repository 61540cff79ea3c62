"""Recording of steps, emulated on a CPU: what CUDA graphs and streams do to a step, without a GPU.

A recording keeps the operations of a step, undoes what they wrote, and replays them without Python on the tensors that
it was recorded with, as a CUDA graph does. Streams are queues whose work is interleaved at random, operation by
operation, as far as they do not wait for each other; an access that is not ordered by such waiting raises `Race`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kdbench.train.cuda_graph import Accelerator, Stream
from kdbench.train.gpu_lint import waits


class Race(AssertionError):
    """Two streams use the same memory, at least one of them writes, and neither waits for the other."""


Clock = dict["EmulatedStream", int]


@dataclass(eq=False)
class Launch:
    """A replay that waits in a stream's queue."""

    operations: Iterator[Operation]
    clock: Clock
    generator_state: Tensor
    pool: object
    begun: bool = False


class Operation:
    """One operation of torch, and what memory it uses."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        given = _tensors(args, kwargs)
        known = set(map(_storage, given))
        self.writes = list(map(_storage, _written(function, args, kwargs)))
        self.reads = [] if function.is_view else list(known.difference(self.writes))
        self.outputs = _tensors(output)
        self.fresh = [(place, tensor) for place, tensor in enumerate(self.outputs) if _storage(tensor) not in known]
        self.draws = torch.Tag.nondeterministic_seeded in function.tags and kwargs.get("generator") is None


@dataclass
class Access:
    """By whom a storage was used."""

    written: tuple[EmulatedStream, int] | None = None
    read: Clock = field(default_factory=dict)


class EmulatedStream(Stream):
    def __init__(self, accelerator: Emulated, name: str) -> None:
        self.accelerator, self.name = accelerator, name
        self.time, self.clock = 0, Clock()
        self.queue: deque[Launch] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        before, self.accelerator.current = self.accelerator.current, self
        try:
            yield
        finally:
            self.accelerator.current = before

    def wait_for(self, other: EmulatedStream) -> None:
        self.accelerator.finish(other)
        for stream, time in {**other.clock, other: other.time}.items():
            self.clock[stream] = max(self.clock.get(stream, 0), time)


class Emulated(Accelerator, TorchDispatchMode):
    """Active as a context manager, around all work on the device."""

    records = True

    def __init__(self, seed: int = 0, *, shares_default_generator: bool = False, recovers: bool = True) -> None:
        """`shares_default_generator` as in torch up to 2.11; not `recovers` as in torch up to 2.12: after a recording
        that failed there is no other.
        """
        Accelerator.__init__(self)
        TorchDispatchMode.__init__(self)
        self.recovers = recovers
        self.shares_default_generator = shares_default_generator
        self.random = Random(seed)
        self.main: EmulatedStream = EmulatedStream(self, "main")
        self.current = self.main
        self.streams = [self.main]
        self.recording: Recording | None = None
        self.watch: list[str] | None = None
        self.accesses: dict[int, Access] = {}  # by storage
        self.recorded_memory: set[int] = set()  # storages that recordings made
        self.slot: Launch | None = None  # whose default generator state is in the shared place
        self.recordings = self.replays = self.failures = 0

    def stream(self) -> EmulatedStream:
        self.streams.append(EmulatedStream(self, f"stream {len(self.streams)}"))
        return self.streams[-1]

    @contextmanager
    def synchronizations(self) -> Iterator[list[str]]:
        self.watch = []
        try:
            yield self.watch
        finally:
            self.watch = None

    def pool(self) -> object:
        return object()

    def record(
        self, stream: Stream, work: Callable[[], object], generator: torch.Generator | None, pool: Any
    ) -> Callable[[], None]:
        assert isinstance(stream, EmulatedStream)
        assert not any(other.queue for other in self.streams), "recorded while other streams were busy"
        generators = [torch.default_generator, *([generator] if generator is not None else [])]
        states = [generator.get_state() for generator in generators]
        self.recording = recording = Recording()
        try:
            with stream.running():
                work()
        except Exception:
            self.failures += 1
            self.can_record = self.recovers
            raise
        finally:
            self.recording = None
            recording.undo()
            for one, state in zip(generators, states, strict=True):
                one.set_state(state)
        self.recordings += 1
        self.recorded_memory |= recording.fresh

        def replay() -> None:
            self.replays += 1
            queued = [launch for other in self.streams if other is not stream for launch in other.queue]
            assert not any(launch.pool is pool for launch in queued), "two replays in one pool at the same time"
            clock, state = dict(stream.clock), torch.default_generator.get_state()
            stream.queue.append(Launch(iter(recording.operations), clock, state, pool))

        return replay

    def finish(self, stream: EmulatedStream) -> None:
        """Run what is queued on a stream, and at random what is queued on others meanwhile."""
        if not stream.queue:
            return
        with _disable_current_modes(), torch._C._AutoDispatchBelowAutograd():
            busy = [other for other in self.streams if other.queue]
            while stream.queue:
                chosen = self.random.choice(busy)
                launch = chosen.queue[0]
                if not launch.begun:
                    launch.begun, self.slot = True, launch
                    for other, time in launch.clock.items():
                        chosen.clock[other] = max(chosen.clock.get(other, 0), time)
                operation = next(launch.operations, None)
                if operation is not None:
                    self._replay(operation, chosen, launch)
                else:
                    chosen.queue.popleft()
                    busy = [other for other in self.streams if other.queue]

    def _replay(self, operation: Operation, stream: EmulatedStream, launch: Launch) -> None:
        self._note(stream, operation)
        if operation.draws:
            of_host = torch.default_generator.get_state()
            read = self.slot if self.shares_default_generator and self.slot else launch
            torch.default_generator.set_state(read.generator_state)
            result = operation.function(*operation.args, **operation.kwargs)
            launch.generator_state = torch.default_generator.get_state()
            torch.default_generator.set_state(of_host)
        else:
            result = operation.function(*operation.args, **operation.kwargs)
        if operation.fresh:
            results = _tensors(result)
            for place, recorded in operation.fresh:
                recorded.copy_(results[place])

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args):
            if self.recording:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            if self.watch is not None:
                self.watch.append(func.overloadpacket.__name__)
        if self.recording:
            return self.recording.run(func, args, kwargs)
        if self.current.queue:
            self.finish(self.current)
        output = func(*args, **kwargs)
        operation = Operation(func, args, kwargs, output)
        self._note(self.current, operation)
        return output

    def _note(self, stream: EmulatedStream, operation: Operation) -> None:
        """Check that this operation's accesses are ordered with all earlier ones, and remember them."""
        stream.time += 1
        for key in operation.writes:
            self._write(stream, key, operation)
        for key in operation.reads:
            self._read(stream, key, operation)
        for _, tensor in operation.fresh:
            key = _storage(tensor)
            if key in self.recorded_memory:
                self._write(stream, key, operation)
            else:
                self.accesses[key] = Access((stream, stream.time))  # new memory

    def _read(self, stream: EmulatedStream, key: int, operation: Operation) -> None:
        access = self.accesses.setdefault(key, Access())
        self._ordered(stream, access.written, operation, "reads what {0} writes")
        access.read[stream] = stream.time

    def _write(self, stream: EmulatedStream, key: int, operation: Operation) -> None:
        access = self.accesses.setdefault(key, Access())
        self._ordered(stream, access.written, operation, "writes what {0} writes")
        for reader in access.read.items():
            self._ordered(stream, reader, operation, "writes what {0} reads")
        access.written, access.read = (stream, stream.time), {}

    def _ordered(
        self, stream: EmulatedStream, other: tuple[EmulatedStream, int] | None, operation: Operation, what: str
    ) -> None:
        if other is not None and other[0] is not stream and stream.clock.get(other[0], 0) < other[1]:
            raise Race(f"{stream.name} {what.format(other[0].name)}, in {operation.function}")


class Recording:
    """The operations of a step, which are run once and undone."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.fresh: set[int] = set()  # storages made by the step itself
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in _written(func, args, kwargs):
            key = _storage(tensor)
            if key not in self.fresh and key not in self._saved:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._saved[key] = whole, whole.clone()
        output = func(*args, **kwargs)
        self.operations.append(Operation(func, args, kwargs, output))
        self.fresh |= {_storage(tensor) for _, tensor in self.operations[-1].fresh}
        return output

    def undo(self) -> None:
        with _disable_current_modes():
            for whole, before in self._saved.values():
                whole.copy_(before)


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors in arguments or results, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
        elif isinstance(value, dict):
            found += _tensors(*value.values())
    return found


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[position] if position < len(args) else kwargs.get(argument.name))
    if func.overloadpacket.__name__ == "native_batch_norm" and args[5]:  # its schema does not say so
        written += args[3:5]
    return _tensors(written)
