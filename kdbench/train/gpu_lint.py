"""What in a method's step would make a GPU slow or a recorded step wrong, found on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.core.trial import Cohort
from kdbench.data.dataset import Dataset
from kdbench.train.cohort import CohortTrainer, build_student
from kdbench.train.cuda_graph import Plain
from kdbench.train.device import seed_default_generator
from kdbench.train.failures import status_and_reason
from kdbench.train.measure_costs import untrained
from kdbench.train.recorded_step import changes, python_state, shared_storage
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

SAID = {
    "_local_scalar_dense": ".item(), float() or bool()",
    "index": "indexing with a mask",
    "index_put": "indexing with a mask",
    "index_put_": "indexing with a mask",
    "lift_fresh": "values that come from Python or numpy",
    "tensor": "values that come from Python or numpy",
    "_linalg_eigh": "torch.linalg.eigh",
    "_linalg_svd": "torch.linalg.svd",
    "linalg_eig": "torch.linalg.eig",
    "_linalg_check_errors": "torch.linalg, which checks its result",
    "to": '.to("cpu")',
    **{name: f".{name}()" for name in ("cpu", "numpy", "tolist")},
}
"""How authors of methods write what waits."""

FACTORIES = frozenset(
    (
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.scalar_tensor,
        torch.tril_indices,
        torch.triu_indices,
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
        if func in FACTORIES and kwargs.get("device") is None and not any(isinstance(arg, Tensor) for arg in args):
            self.on_host.append(name)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Finding:
    """What was found in a method's step, in one sentence for its author."""

    sentence: str
    plain: bool  # whether the step cannot be recorded, or would fail, because of it


def lint(student: Student, inputs: Callable[[int], Iterator[StepInputs]]) -> list[Finding]:
    """Train a student for two steps of each of its stages on the inputs of an epoch, and say what was found."""
    found: dict[str, Finding] = {}

    def note(sentence: str, plain: bool = True) -> None:
        found.setdefault(sentence, Finding(sentence, plain))

    modules = (("network", student.network), ("self", student.distiller))
    for name in _unregistered(student.distiller):
        note(f"{name} is a tensor that stays on the CPU: register_buffer moves it to the device")
    for epoch in (-1, 1) if student.pretraining else (1,):
        steps = inputs(epoch)
        student.begin_epoch(epoch)
        student.step(next(steps))
        before = python_state(modules)
        assert student.current is not None
        seed_default_generator(student.device, student.current.dropout_seed + student.steps)
        undrawn, batch, host = torch.default_generator.get_state(), next(steps), Plain().host_states()
        with Waits() as operations, _Calls() as calls:
            student.step(batch)
        after = python_state(modules)
        waited = dict.fromkeys(SAID.get(name, name) for name in (*operations.found, *calls.copied))
        if waited:
            note(f"waits for the device ({', '.join(waited)}): torch.where and masks keep the work there")
        kept = shared_storage(after, batch.tensors())
        for name in kept:
            note(f"{name} keeps a tensor of the step, which the next step overwrites: keep a clone")
        if changed := [name for name in changes(before, after) if name not in kept]:
            mend = "change a buffer in place, or set to None again what only hands something on"
            note(f"changes {', '.join(changed)} in Python, which a recording freezes: {mend}")
        if host != Plain().host_states():
            note("draws random numbers on the host, which a recording freezes: use self.generator")
        if calls.on_host:
            names = ", ".join(f"torch.{name}" for name in dict.fromkeys(calls.on_host))
            note(f"makes a tensor on the CPU ({names}): give device=")
        if not torch.equal(undrawn, torch.default_generator.get_state()):
            note("draws from torch's default generator: self.generator lets it run beside others on any torch", False)
        if student.epoch_reads:
            note("reads the epoch: it is recorded again whenever that gives another value", False)
    return list(found.values())


def _unregistered(distiller: nn.Module) -> list[str]:
    """Attributes that hold tensors which are neither parameters nor buffers."""
    return [
        f"{path}.{name}"
        for path, module in distiller.named_modules(prefix="self")
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]


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
        try:
            student = build_student(trial, dataset, trainer.teachers, trainer.loader)
            found[original.id] = lint(student, inputs)
        except Exception as error:
            _, reason = status_and_reason(error, "in its first steps")
            found[original.id] = [Finding(f"fails {reason}", plain=True)]
    return found
