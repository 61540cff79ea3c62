"""What each method adds to a cohort, beside its parts measured alone.

    python benchmarks/marginal.py --json FILE

In every step, in turns: each student's whole step as a cohort takes it, and the same step with its network left out,
which leaves the method's helper modules, its loss and their optimizer. A method is lean if its step costs no more than
the plain (vanilla) student's and those parts together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.compare import Bench, load, parser, summary
from kdbench.core.errors import UserError
from kdbench.core.trial import VANILLA
from kdbench.data.resident import Loader
from kdbench.models.output import Output
from kdbench.train.device import configure_torch, describe_environment, resolve_device
from kdbench.train.evaluate import autocast
from kdbench.train.shared_inputs import Shared
from kdbench.train.student import Student
from kdbench.train.teacher import Teacher


class Given(nn.Module):
    """Stands where a network was, and answers what that network said of one batch; gradients end here."""

    def __init__(self, network: nn.Module, images: Tensor, student: Student) -> None:
        super().__init__()
        self.network = network  # still the optimizer's, without gradients
        with torch.no_grad(), autocast(student.device, student.trial.precision):
            self.said: Output = network(images, pre_activations=student.method.pre_activations)

    def forward(self, images: Tensor, pre_activations: bool) -> Output:
        return self.said.convert(lambda tensor: tensor.detach().requires_grad_())


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, in seconds a step. Raises UserError."""
    device = resolve_device(args.device)
    images = load(args.images, args.size)
    bench = Bench(args, images, folder, device)
    configure_torch(device, bench.precision, args.threads)
    if bench.trials[0].method != VANILLA:
        raise UserError("--methods must begin with vanilla: its step is what the others are measured by")
    cohort = bench.cohorts[-1]
    loader = Loader(images, batch_size=args.batch, pad=cohort.recipe.pad, device=device, seed=0)
    shared = Shared(loader, Teacher(cohort, bench.weights, device), device)
    whole = {trial.method: bench.student(trial) for trial in bench.trials}
    parts = {method: bench.student(student.trial) for method, student in whole.items() if method != VANILLA}
    shared.begin(1, any(student.method.pre_activations for student in whole.values()), replayed=False)
    spent: dict[str, dict[str, list[float]]] = {name: {"whole": [], "parts": []} for name in whole}
    lead: list[float] = []
    for number in range(args.warmup + args.steps):
        shared.advance()
        lead.append(shared.clock.mean())
        for method, student in whole.items():
            student.step(shared.batch, shared.target)
            spent[method]["whole"].append(student.clock.mean())
        for method, student in parts.items():
            if number == 0:
                student.network = Given(student.network, shared.batch.images_for(student.normalization), student)
            student.step(shared.batch, shared.target)
            spent[method]["parts"].append(student.clock.mean())
    plain, guide = summary(spent[VANILLA]["whole"][args.warmup :]), summary(lead[args.warmup :])

    def figures(method: str) -> dict[str, Any]:
        own, alone = (spent[method][side][args.warmup :] for side in ("whole", "parts"))
        student = whole[method]
        return {
            "step_seconds": summary(own),
            "parts_seconds": summary(alone),
            "over_plain": median(own) / plain["median"],
            "over_plain_and_parts": median(own) / (plain["median"] + median(alone)),
            "with_teacher_seconds": guide["median"] + median(own),
            **student.cost(),
        }

    return {
        "machine": {name: value for name, value in describe_environment(device).items() if name != "host"},
        "date": time.strftime("%Y-%m-%d"),
        "settings": {**vars(args), "json": None, "precision": bench.precision},
        "left_out": bench.left_out,
        "plain_seconds": plain,
        "data_and_teacher_seconds": guide,
        "methods": {method: figures(method) for method in parts},
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures as a table."""
    table = Table("", "step, ms", "parts alone, ms", "over plain", "over plain + parts", "with teacher, ms", "MiB held")
    for method, found in figures["methods"].items():
        times = [f"{1e3 * found[key]['median']:,.1f}" for key in ("step_seconds", "parts_seconds")]
        ratios = [f"{found[key]:.2f}" for key in ("over_plain", "over_plain_and_parts")]
        table.add_row(
            method, *times, *ratios, f"{1e3 * found['with_teacher_seconds']:,.1f}", f"{found['extra_mib']:.1f}"
        )
    lead, plain = (1e3 * figures[key]["median"] for key in ("data_and_teacher_seconds", "plain_seconds"))
    console.print(table, f"plain student {plain:,.1f} ms; data and teacher {lead:,.1f} ms", sep="\n", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program. Returns the exit code."""
    options = parser()
    options.description = __doc__
    options.set_defaults(methods="vanilla,all")
    args = options.parse_args(argv)
    try:
        with TemporaryDirectory() as folder:
            figures = measure(args, Path(folder))
    except UserError as error:
        print(f"marginal: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    show(figures, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
