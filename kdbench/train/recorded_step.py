"""One step's work, recorded when it is safe and replayed from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.train.cuda_graph import Accelerator
from kdbench.train.device import is_out_of_memory
from kdbench.train.meters import Timer

log = logging.getLogger("kdbench")

WARM_UP = 2
"""Steps before the first recording, so that cuDNN's autotuning, momentum buffers and memories are settled. The last of
them is watched for what a recording would freeze."""

TIMED_STEPS = 21
"""Replayed steps after a recording that run alone and are timed; after these, students run concurrently."""


@dataclass(frozen=True)
class Work:
    """What a step does. It is made for one call, and not kept: a student that leaves is then freed at once."""

    do: Callable[[], object]
    discard: Callable[[], None] = lambda: None
    """Undoes what a recording that failed has left behind."""
    modules: tuple[tuple[str, nn.Module], ...] = ()
    """By name; they may hold state in Python."""
    generator: torch.Generator | None = None
    """That it draws from beside torch's own."""
    reads: Callable[[], Sequence[Tensor]] = tuple
    """What the next step overwrites."""


class RecordedStep:
    """The work of the teachers' or a student's step, on a stream of its own for as long as it trains.

    There is a recording for each slot, that is for each set of tensors with a step's inputs. Where the device records
    nothing, the work runs plainly. So it does if it waits for the device or keeps state in Python, which a recording
    would freeze; then one line in the log says why.
    """

    def __init__(self, name: str, accelerator: Accelerator, timer: Timer | None = None) -> None:
        self.name, self.accelerator, self.timer = name, accelerator, timer
        self.stream, self._pool = accelerator.stream(), None
        self.restart()

    def restart(self) -> None:
        """The work is another from now on, and warms up again."""
        self.close()
        self.refusal: str | None = None  # why it runs plainly
        self._warm_ups = self._timed = 0
        self._before: dict[str, object] = {}
        self._draws = False

    def close(self) -> None:
        """Forget the recordings, after waiting for them: others may use their memory next."""
        self.join()
        self._replays: dict[int, tuple[Hashable, Callable[[], None]]] = {}

    def settled(self, slot: int) -> bool:
        """Whether the next step takes as long as all that follow."""
        return self.refusal is not None or slot in self._replays

    def join(self) -> None:
        """What is launched after this waits for the step."""
        self.accelerator.join(self.stream)

    def __call__(self, slot: int, key: Hashable, work: Work) -> None:
        """Do the work once. `join` must follow before its results are used, and before what it reads is changed.

        A recording holds for its `key`, which says what the work is made from: another takes its slot. Raises what the
        work raises, that memory ended, and RuntimeError for a method that keeps what the next step overwrites.
        """
        if self.refusal or not self.accelerator.records:
            self._plain(work, timed=True)
            return
        if self._warm_ups < WARM_UP:
            self._warm_up(work)
            return
        recorded_for, replay = self._replays.get(slot, (None, None))
        if replay is None or recorded_for != key:
            self.join()
            self._replays.pop(slot, None)
            replay = None  # the last reference: its memory is free for the next one
            if self.accelerator.can_record:
                replay = self._record(slot, key, work)
            else:
                self._refuse("an earlier recording failed, and this torch makes no other after that")
        if replay:
            self._launch(replay)
        else:
            self._plain(work, timed=False)

    def _plain(self, work: Work, timed: bool) -> None:
        """Do it eagerly and alone: it may spoil what others read, which is found out after it."""
        self.accelerator.join()
        with self.timer.running() if timed and self.timer else nullcontext():
            self.accelerator.fork(self.stream)
            try:
                with self.stream.running():
                    work.do()
            finally:
                self.join()

    def _warm_up(self, work: Work) -> None:
        self._warm_ups += 1
        if self._warm_ups < WARM_UP:
            self._plain(work, timed=False)
            self._before = python_state(work.modules)
            return
        drawn, on_host = self.accelerator.default_generator_state(), self.accelerator.host_states()
        with self.accelerator.synchronizations() as waits:
            self._plain(work, timed=False)
        after = python_state(work.modules)
        if kept := shared_storage(after, work.reads()):
            raise RuntimeError(f"{kept[0]} keeps a tensor of the step, which the next step overwrites: keep a clone")
        self._draws = not torch.equal(drawn, self.accelerator.default_generator_state())
        changed = changes(self._before, after)
        self._before = {}
        if waits:
            self._refuse(f"its step waits for the device ({waits[0]})")
        elif on_host != self.accelerator.host_states():
            self._refuse("its step draws random numbers on the host")
        elif changed:
            self._refuse(f"its step changes {changed[0]} in Python, and not a tensor in place")

    def _record(self, slot: int, key: Hashable, work: Work) -> Callable[[], None] | None:
        self.accelerator.join()
        if not self._replays:
            self._pool = self.accelerator.pool()
        try:
            replay = self.accelerator.record(self.stream, work.do, work.generator, self._pool)
        except Exception as error:
            work.discard()
            if (memory := _memory_error(error)) is not None:
                raise memory from error
            self._refuse(_first_cause(error))
            return None
        self._replays[slot] = key, replay
        return replay

    def _launch(self, replay: Callable[[], None]) -> None:
        timed = self._timed < TIMED_STEPS and self.timer is not None
        alone = timed or (self._draws and self.accelerator.shares_default_generator)
        if alone:
            self.accelerator.join()
        with self.timer.running() if timed and self.timer else nullcontext():
            self.accelerator.fork(self.stream)
            with self.stream.running():
                replay()
            if alone:
                self.join()
        self._timed += timed

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        self.close()
        log.warning("%s runs without a CUDA graph: %s", self.name, reason)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it arose from, the first one last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _memory_error(error: BaseException) -> BaseException | None:
    """The cause that tells that memory ended, if one does."""
    return next(filter(is_out_of_memory, _causes(error)), None)


def _first_cause(error: BaseException) -> str:
    """In one line. Where it is asked for, no name may keep the cause: it keeps the frames, and they the student."""
    *_, first = _causes(error)
    return f"{type(first).__name__}: {(str(first).splitlines() or [''])[0]}"


_STATELESS = (torch.Generator, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, logging.Logger)


def python_state(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, object]:
    """What a recording would freeze, by name: numbers and words that modules, their classes and the objects in them
    hold, and which tensors their names stand for. The tensors are kept, so that no other takes their place.
    """
    found: dict[str, object] = {}
    seen: set[int] = set()

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = (value, value.data_ptr())
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
            found[name] = value
        elif id(value) in seen or isinstance(value, _STATELESS):
            return
        elif isinstance(value, dict):
            seen.add(id(value))
            found[f"{name}, its size"] = len(value)
            for key, content in list(value.items()):
                visit(f"{name}[{key!r}]", content)
        elif isinstance(value, list | tuple | set | frozenset):
            seen.add(id(value))
            found[f"{name}, its size"] = len(value)
            for number, content in enumerate(list(value)):
                visit(f"{name}[{number}]", content)
        elif hasattr(value, "__dict__") and not isinstance(value, nn.Module):
            seen.add(id(value))
            for key, content in list(vars(value).items()):
                visit(f"{name}.{key}", content)

    for root, module in modules:
        for path, part in module.named_modules(prefix=root):
            own = [cls for cls in type(part).__mro__ if not cls.__module__.startswith(("torch.", "builtins"))]
            for cls in own:
                for key, value in list(vars(cls).items()):
                    if isinstance(value, bool | int | float | list | dict | set | Tensor) and not key.startswith("__"):
                        visit(f"{cls.__name__}.{key}", value)
            for key, value in list(vars(part).items()):
                if key in ("_parameters", "_buffers"):
                    for tensor_name, tensor in value.items():
                        visit(f"{path}.{tensor_name}", tensor)
                elif key != "_modules":
                    visit(f"{path}.{key}", value)
    return found


def shared_storage(state: dict[str, object], tensors: Iterable[Tensor]) -> list[str]:
    """Names in a `python_state` of tensors that lie in the memory of others."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    held = {name: value[0] for name, value in state.items() if isinstance(value, tuple)}
    return [name for name, tensor in held.items() if tensor.untyped_storage().data_ptr() in memory]


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names whose state differs."""

    def same(left: object, right: object) -> bool:
        if isinstance(left, tuple) and isinstance(right, tuple):  # a tensor and its address
            return left[0] is right[0] and left[1] == right[1]
        return type(left) is type(right) and (left == right or (left != left and right != right))  # NaN

    missing = object()
    return [name for name in {**before, **after} if not same(before.get(name, missing), after.get(name, missing))]
