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
from torch.utils._pytree import tree_leaves

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


@dataclass
class Operation:
    """One recorded operation of torch."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


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
        self.accesses: dict[int, Access] = {}
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

        def replay() -> None:
            self.replays += 1
            queued = [launch for other in self.streams if other is not stream for launch in other.queue]
            assert not any(launch.pool is pool for launch in queued), "two replays in one pool at the same time"
            clock, state = dict(stream.clock), torch.default_generator.get_state()
            stream.queue.append(Launch(iter(recording.operations), clock, state, pool))

        return replay

    def finish(self, stream: EmulatedStream) -> None:
        """Run what is queued on a stream, and at random what is queued on others meanwhile."""
        while stream.queue:
            chosen = self.random.choice([other for other in self.streams if other.queue])
            launch = chosen.queue[0]
            if not launch.begun:
                launch.begun, self.slot = True, launch
            operation = next(launch.operations, None)
            if operation is None:
                chosen.queue.popleft()
                continue
            for other, time in launch.clock.items():
                chosen.clock[other] = max(chosen.clock.get(other, 0), time)
            with _disable_current_modes(), torch._C._AutoDispatchBelowAutograd():
                self._replay(operation, chosen, launch)

    def _replay(self, operation: Operation, stream: EmulatedStream, launch: Launch) -> None:
        self._note(stream, operation.function, operation.args, operation.kwargs, None)
        if _draws_from_default_generator(operation.function, operation.kwargs):
            of_host = torch.default_generator.get_state()
            read = self.slot if self.shares_default_generator and self.slot else launch
            torch.default_generator.set_state(read.generator_state)
            result = operation.function(*operation.args, **operation.kwargs)
            launch.generator_state = torch.default_generator.get_state()
            torch.default_generator.set_state(of_host)
        else:
            result = operation.function(*operation.args, **operation.kwargs)
        given = set(map(_storage, _tensors(operation.args, operation.kwargs)))
        for recorded, fresh in zip(_tensors(operation.output), _tensors(result), strict=True):
            if _storage(recorded) not in given:
                recorded.copy_(fresh)
                self._write(stream, recorded)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func, args):
            if self.recording:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            if self.watch is not None:
                self.watch.append(func.overloadpacket.__name__)
        if self.recording:
            return self.recording.run(func, args, kwargs)
        self.finish(self.current)
        output = func(*args, **kwargs)
        self._note(self.current, func, args, kwargs, output)
        return output

    def _note(self, stream: EmulatedStream, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Check that this operation's accesses are ordered with all earlier ones, and remember them."""
        stream.time += 1
        written = {_storage(tensor) for tensor in _written(func, args, kwargs)}
        given = set()
        if not _is_view(func):
            for tensor in _tensors(args, kwargs):
                given.add(_storage(tensor))
                if _storage(tensor) in written:
                    self._write(stream, tensor)
                else:
                    self._read(stream, tensor)
        else:
            given = set(map(_storage, _tensors(args, kwargs)))
        for tensor in _tensors(output):
            if _storage(tensor) not in given:
                self.accesses[_storage(tensor)] = Access((stream, stream.time))  # new memory

    def _read(self, stream: EmulatedStream, tensor: Tensor) -> None:
        access = self.accesses.setdefault(_storage(tensor), Access())
        self._ordered(stream, access.written, tensor, "reads what {0} writes")
        access.read[stream] = stream.time

    def _write(self, stream: EmulatedStream, tensor: Tensor) -> None:
        access = self.accesses.setdefault(_storage(tensor), Access())
        self._ordered(stream, access.written, tensor, "writes what {0} writes")
        for reader in access.read.items():
            self._ordered(stream, reader, tensor, "writes what {0} reads")
        access.written, access.read = (stream, stream.time), {}

    def _ordered(
        self, stream: EmulatedStream, other: tuple[EmulatedStream, int] | None, tensor: Tensor, what: str
    ) -> None:
        if other is not None and other[0] is not stream and stream.clock.get(other[0], 0) < other[1]:
            raise Race(f"{stream.name} {what.format(other[0].name)}: {tuple(tensor.shape)}")


class Recording:
    """The operations of a step, which are run once and undone."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._fresh: set[int] = set()  # storages made by the step itself
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in _written(func, args, kwargs):
            key = _storage(tensor)
            if key not in self._fresh and key not in self._saved:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._saved[key] = whole, whole.clone()
        output = func(*args, **kwargs)
        given = set(map(_storage, _tensors(args, kwargs)))
        self._fresh |= {_storage(tensor) for tensor in _tensors(output)} - given
        self.operations.append(Operation(func, args, kwargs, output))
        return output

    def undo(self) -> None:
        with _disable_current_modes():
            for whole, before in self._saved.values():
                whole.copy_(before)


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_view(func: Any) -> bool:
    """Whether an operation reads no memory."""
    return bool(func.is_view)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[position] if position < len(args) else kwargs.get(argument.name))
    if func.overloadpacket.__name__ == "native_batch_norm" and args[5]:  # its schema does not say so
        written += args[3:5]
    return _tensors(written)


def _draws_from_default_generator(func: Any, kwargs: dict[str, Any]) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
