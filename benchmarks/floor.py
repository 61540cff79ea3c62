"""How much of a cohort's step is convolutions and matrix products at the rate that they reach alone.

    python benchmarks/floor.py                                       a minute on a CPU
    python benchmarks/floor.py --pair vgg13:vgg8 --methods vanilla,all --steps 5 --json FILE

The floor of a step is the time of every convolution and linear layer of the teacher (forward) and of each student
(forward, and backward with respect to weights and, but for the first, to inputs), each run alone on tensors of the same
shape, type and layout as in training. It is measured in turns with the step itself, in one run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from benchmarks.compare import Bench, build_parser, command, header, load, summary
from benchmarks.conventional import synchronize
from kdbench.distill import Requires
from kdbench.models import build
from kdbench.runner.catalog import build_catalog
from kdbench.train.cohort import CohortTrainer
from kdbench.train.device import configure_torch, resolve_device
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.student import Student


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer, as training runs it."""

    images: tuple[int, ...]  # shape of its input
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    trained: bool
    first: bool  # its input needs no gradient

    def work(self, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
        """Its forward pass, and if it is trained its backward pass, on random tensors."""
        x, weight = (torch.randn(shape, device=device, dtype=dtype) for shape in (self.images, self.weight))
        if x.ndim == 4:
            x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
        stride, padding, dilation = list(self.stride), list(self.padding), list(self.dilation)

        def forward() -> Tensor:
            if x.ndim == 2:
                return F.linear(x, weight)
            return F.conv2d(x, weight, None, stride, padding, dilation, self.groups)

        with torch.no_grad():
            gradient = torch.randn_like(forward())
        if not self.trained:
            return torch.no_grad()(forward)
        if x.ndim == 2:
            return lambda: (F.linear(x, weight), gradient @ weight, gradient.T @ x)

        def both() -> object:
            with torch.no_grad():
                forward()
                return torch.ops.aten.convolution_backward(
                    gradient,
                    x,
                    weight,
                    None,
                    stride,
                    padding,
                    dilation,
                    False,
                    [0, 0],
                    self.groups,
                    [not self.first, True, False],
                )

        return both


def layers(arch: str, batch: int, classes: int, size: int, *, trained: bool) -> list[Layer]:
    """All layers of a network in the order in which they run."""
    network, found = build(arch, classes, size).eval(), list[Layer]()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        shape = (batch, *inputs[0].shape[1:])
        if isinstance(module, nn.Conv2d):
            assert not isinstance(module.padding, str)
            weight, first = tuple(module.weight.shape), not found
            geometry = module.stride, module.padding, module.dilation
            found.append(Layer(shape, weight, *geometry, groups=module.groups, trained=trained, first=first))
        elif isinstance(module, nn.Linear):
            found.append(Layer(shape, tuple(module.weight.shape), (), (), (), 1, trained, first=False))

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return found


def seconds(work: Callable[[], object], device: torch.device, repetitions: int, uncounted: int = 1) -> float:
    """The median of some runs after those that are not counted. On a GPU many are launched at a time, so that it works
    without a break.
    """
    times, launches = list[float](), 20 if device.type == "cuda" else 1
    for _ in range(uncounted + repetitions):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(launches):
            work()
        synchronize(device)
        times.append((time.perf_counter() - started) / launches)
    return median(times[uncounted:])


def endless(trainer: CohortTrainer, requires: Sequence[Requires]) -> Iterator[StepInputs]:
    """The inputs of step after step, epoch after epoch."""
    for epoch in count(1):
        trainer.inputs.begin_epoch(epoch, requires)
        for _ in range(trainer.loader.steps):
            yield trainer.inputs.advance()


def stepper(trainer: CohortTrainer, students: Sequence[Student]) -> Callable[[], None]:
    """Takes the next step of all students."""
    batches = endless(trainer, [student.requires for student in students])

    def step() -> None:
        inputs = next(batches)
        for student in students:
            student.step(inputs)
        for student in students:
            student.join()

    return step


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures. Raises UserError."""
    device = resolve_device(args.device)
    dataset = load(args.images, args.size)
    bench = Bench(args, dataset, build_catalog(dataset), folder, device)
    configure_torch(device, bench.precision, args.threads)
    dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    cohort = bench.cohorts[-1]
    classes = dataset.info.classes
    counts: Counter[Layer] = Counter()
    for trial in cohort.trials:
        counts.update(layers(trial.arch, args.batch, classes, args.size, trained=True))
    for teacher in cohort.teachers:
        counts.update(layers(teacher.arch, args.batch, classes, args.size, trained=False))
    works = {layer: layer.work(device, dtype) for layer in counts}
    trainer = bench.trainer(cohort)
    students = [bench.student(trial, trainer) for trial in cohort.trials]
    step = stepper(trainer, students)
    steps, floors = list[float](), list[float]()
    for repetition in range(args.repetitions):
        steps.append(seconds(step, device, args.steps, uncounted=1 if repetition else 3))
        alone = {layer: seconds(work, device, args.steps) for layer, work in works.items()}
        floors.append(sum(count * alone[layer] for layer, count in counts.items()))
        print(
            f"repetition {repetition + 1}: step {1e3 * steps[-1]:.1f} ms, floor {1e3 * floors[-1]:.1f} ms", flush=True
        )
    return {
        **header(args, bench),
        "methods": [trial.method for trial in cohort.trials],
        "recorded": trainer.accelerator.records,
        "layers": {"all": counts.total(), "different": len(counts)},
        "step_seconds": summary(steps),
        "floor_seconds": summary(floors),
        "share_of_the_floor": summary([floor / whole for floor, whole in zip(floors, steps, strict=True)]),
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the share."""
    share = figures["share_of_the_floor"]
    shown = f"share of the floor: {share['median']:.1%} ({share['min']:.1%} - {share['max']:.1%})"
    console.print(shown, figures["machine"], sep="\n", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement. Returns the exit code."""
    parser = build_parser(__doc__)
    parser.set_defaults(images="synthetic:2560", methods="kd,crd,icd", repetitions=5, steps=3)
    return command(parser.parse_args(argv), measure, show)


if __name__ == "__main__":
    sys.exit(main())
