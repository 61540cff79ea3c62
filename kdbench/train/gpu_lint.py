"""What in a method's step would make a GPU slow or a recorded step wrong, found on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.core.trial import Cohort
from kdbench.data.dataset import Dataset
from kdbench.train.cohort import CohortTrainer, build_student
from kdbench.train.device import seed_default_generator
from kdbench.train.measure_costs import untrained
from kdbench.train.recorded_step import changes, python_state
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.student import Student

WAITS = frozenset(
    (
        "_linalg_check_errors",
        "_linalg_eigh",
        "_linalg_svd",
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "lift_fresh",
        "linalg_eig",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    )
)
"""Operations for which the host waits: their result, or its shape, depends on values on the device, or values come from
the host."""

BY_MASK = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))

TO_HOST = frozenset(("__array__", "cpu", "numpy", "tolist"))
"""Methods of tensors that read values back, which on a CPU torch does not see as operations."""

FACTORIES = frozenset(
    (
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.scalar_tensor,
        torch.tensor,
        torch.zeros,
    )
)
"""What makes a tensor on the CPU unless it is told where."""


def waits(operation: Any, arguments: Sequence[Any]) -> bool:
    """Whether the host would wait for a GPU in this operation of torch."""
    name = operation.overloadpacket.__name__
    if name in BY_MASK:
        by_mask = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
        filled = name != "index" and isinstance(arguments[2], Tensor) and arguments[2].numel() == 1  # masked_fill
        return by_mask and not filled
    if (
        name == "lift_fresh" and arguments[0].numel() == 1
    ):  # a number that is assigned, which is filled in on the device
        return False
    return name in WAITS


class Waits(TorchDispatchMode):
    """Notes the operations within for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if waits(func, args):
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Notes calls within that copy values from or to the host, or make a tensor there."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[str] = []
        self.on_host: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        targets = (*args[1:], *kwargs.values()) if name == "to" else ()
        to_host = any(isinstance(target, str) and target == "cpu" for target in targets)
        if name in TO_HOST or to_host or func is torch.tensor:
            self.copied.append(name)
        if func in FACTORIES and kwargs.get("device") is None:
            self.on_host.append(name)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Finding:
    """What was found in a method's step, in one sentence for its author."""

    sentence: str
    plain: bool  # whether the step cannot be recorded because of it


def lint(student: Student, inputs: Callable[[int], Iterator[StepInputs]]) -> list[Finding]:
    """Train a student for two steps of each of its stages on the inputs of an epoch, and say what was found."""
    found: dict[str, Finding] = {}

    def note(sentence: str, plain: bool = True) -> None:
        found.setdefault(sentence, Finding(sentence, plain))

    stages = ((-1, "pretraining"), (1, "training")) if student.pretraining else ((1, "training"),)
    modules = (("network", student.network), ("self", student.distiller))
    for epoch, stage in stages:
        steps = inputs(epoch)
        student.begin_epoch(epoch)
        student.step(next(steps))
        before = python_state(modules)
        assert student.current is not None
        seed_default_generator(student.device, student.current.dropout_seed + student.steps)
        undrawn, batch = torch.default_generator.get_state(), next(steps)
        with Waits() as operations, _Calls() as calls:
            student.step(batch)
        drawn = not torch.equal(undrawn, torch.default_generator.get_state())
        for name in dict.fromkeys((*operations.found, *calls.copied)):
            note(f"waits for the device in {stage} ({name}): it is slow on a GPU, and cannot be recorded")
        for name in changes(before, python_state(modules)):
            mend = "change a buffer in place instead, or set it to None again if it only hands something on"
            note(f"changes {name} in Python in {stage}, and cannot be recorded: {mend}")
        for name in dict.fromkeys(calls.on_host):
            note(f"calls torch.{name} without device= in {stage}: on a GPU the tensor would be on the wrong device")
        if drawn:
            note("draws from torch's default generator: self.generator lets it run beside others on any torch", False)
        if student.reads_epoch:
            note("reads step.epoch: it is recorded again in every epoch", False)
    return list(found.values())


def lint_cohort(cohort: Cohort, dataset: Dataset) -> dict[str, list[Finding]]:
    """What is found in the step of each trial of a cohort, under random teachers, by trial id."""
    job = untrained(cohort, epochs=2)
    trainer = CohortTrainer(job, dataset, torch.device("cpu"), lambda event: None)
    found = {}

    def inputs(epoch: int) -> Iterator[StepInputs]:
        trainer.inputs.begin_epoch(epoch, [student.requires])
        while True:
            yield trainer.inputs.advance()

    for trial, original in zip(job.cohort.trials, cohort.trials, strict=True):
        student = build_student(trial, dataset, trainer.teachers, trainer.loader)
        found[original.id] = lint(student, inputs)
    return found
