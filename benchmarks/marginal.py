"""Measure what each method adds to a cohort, and what its own parts cost alone.

    python benchmarks/marginal.py --json FILE

In every step, in turns: each student's step as in a cohort, and the same step without its network, which leaves the
method's modules, its loss and their optimizer. A method is lean if its step costs no more than the step of the plain
(vanilla) student and those parts together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.compare import Bench, build_parser, command, header, load, summary
from kdbench.core.errors import UserError
from kdbench.core.trial import VANILLA
from kdbench.models.output import Output
from kdbench.runner.catalog import build_catalog
from kdbench.train.device import configure_torch, resolve_device
from kdbench.train.evaluate import autocast
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.student import Student


class ConstantOutput(nn.Module):
    """Replaces a student's network by its output for one batch; gradients end there."""

    def __init__(self, student: Student, images: Tensor) -> None:
        super().__init__()
        self.network = student.network  # the optimizer still has its parameters, which get no gradients
        with torch.no_grad(), autocast(student.device, student.trial.precision):
            self.output: Output = self.network(images, pre_activations=student.requires.pre_activations)

    def forward(self, images: Tensor, pre_activations: bool) -> Output:
        return self.output.convert(lambda tensor: tensor.detach().requires_grad_())

    def get_classifier(self) -> Any:
        return self.network.get_classifier()  # type: ignore[operator]


def step_seconds(student: Student, inputs: StepInputs) -> float:
    """Take one step and time it."""
    before = student.seconds()
    student.step(inputs)
    return student.seconds() - before


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, in seconds a step. Raises UserError."""
    device = resolve_device(args.device)
    dataset = load(args.images, args.size)
    bench = Bench(args, dataset, build_catalog(dataset), folder, device)
    configure_torch(device, bench.precision, args.threads)
    if bench.trials[0].method != VANILLA:
        raise UserError("--methods must begin with vanilla: its step is what the others are measured by")
    trainer = bench.trainer(bench.cohorts[-1])
    students = {trial.method: bench.student(trial, trainer) for trial in bench.trials}
    without_network = {trial.method: bench.student(trial, trainer) for trial in bench.trials if trial.teachers}
    trainer.inputs.begin_epoch(1, [student.requires for student in students.values()])
    steps: dict[str, list[float]] = {method: [] for method in students}
    parts: dict[str, list[float]] = {method: [] for method in without_network}
    shared: list[float] = []
    for number in range(args.warmup + args.steps):
        inputs = trainer.inputs.advance()
        shared.append(sum(trainer.inputs.seconds_per_step().values()))
        for method, student in students.items():
            steps[method].append(step_seconds(student, inputs))
        for method, student in without_network.items():
            if number == 0:
                student.network = ConstantOutput(student, inputs.batch.images_for(student.normalization))
            parts[method].append(step_seconds(student, inputs))
    for seconds in (shared, *steps.values(), *parts.values()):
        del seconds[: args.warmup]
    plain, data_and_teacher = summary(steps[VANILLA]), summary(shared)

    def figures(method: str) -> dict[str, Any]:
        step, alone = median(steps[method]), median(parts[method])
        return {
            "step_seconds": summary(steps[method]),
            "parts_seconds": summary(parts[method]),
            "over_plain": step / plain["median"],
            "over_plain_and_parts": step / (plain["median"] + alone),
            "with_teacher_seconds": data_and_teacher["median"] + step,
            **students[method].cost(),
        }

    return {
        **header(args, bench),
        "plain_seconds": plain,
        "data_and_teacher_seconds": data_and_teacher,
        "methods": {method: figures(method) for method in parts},
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    table = Table("", "step, ms", "parts alone, ms", "over plain", "over plain + parts", "with teacher, ms", "MiB held")
    for method, row in figures["methods"].items():
        times = [f"{1e3 * row[key]['median']:,.1f}" for key in ("step_seconds", "parts_seconds")]
        ratios = [f"{row[key]:.2f}" for key in ("over_plain", "over_plain_and_parts")]
        table.add_row(method, *times, *ratios, f"{1e3 * row['with_teacher_seconds']:,.1f}", f"{row['extra_mib']:.1f}")
    shared, plain = (1e3 * figures[key]["median"] for key in ("data_and_teacher_seconds", "plain_seconds"))
    console.print(table, f"plain student {plain:,.1f} ms; data and teacher {shared:,.1f} ms", sep="\n", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement. Returns the exit code."""
    parser = build_parser(__doc__)
    parser.set_defaults(methods="vanilla,all")
    return command(parser.parse_args(argv), measure, show)


if __name__ == "__main__":
    sys.exit(main())
