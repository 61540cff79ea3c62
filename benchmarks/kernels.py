"""Count the operations, kernels and launches of one step of a cohort, by torch's profiler.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --pair vgg13:vgg8 --methods vanilla,all --json FILE

Operations are what Python and autograd call; on a GPU, kernels are what runs there, and launches what the host asked
for: in a plain step one for each kernel, in a replayed step one for each student and for the teachers, and a dozen for
the batch.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.compare import Bench, build_parser, command, header, load
from benchmarks.conventional import synchronize
from benchmarks.floor import stepper
from kdbench.runner.catalog import build_catalog
from kdbench.train.cuda_graph import Plain
from kdbench.train.device import configure_torch, resolve_device
from kdbench.train.inputs_ahead import SLOTS
from kdbench.train.recorded_step import TIMED_STEPS, WARM_UP

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
"""Beginnings of the names by which the host asks a GPU for work."""


def count(bench: Bench, *, recorded: bool) -> dict[str, Any] | None:
    """Of one step, after those that warm up and are timed one by one; None if no step is recorded that should be."""
    trainer = bench.trainer(bench.cohorts[-1], on=None if recorded else Plain())
    if recorded and not trainer.accelerator.records:
        return None
    students = [bench.student(trial, trainer) for trial in bench.cohorts[-1].trials]
    step = stepper(trainer, students)
    for _ in range(WARM_UP + recorded * (SLOTS + TIMED_STEPS + 2)):
        step()
    synchronize(bench.device)
    on_gpu = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiler:
        step()
        synchronize(bench.device)
    names = Counter(event.name for event in profiler.events() if event.device_type.name == "CPU")
    on_device = [event.name for event in profiler.events() if event.device_type.name == "CUDA"]
    kernels = sum(not name.startswith(("Memcpy", "Memset")) for name in on_device)
    launches = {name: number for name, number in names.items() if name.startswith(LAUNCHES)}
    return {
        "operations": sum(number for name, number in names.items() if name.startswith("aten::")),
        **({"kernels": kernels, "launches": launches} if on_gpu else {}),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All counts. Raises UserError."""
    device = resolve_device(args.device)
    dataset = load(args.images, args.size)
    bench = Bench(args, dataset, build_catalog(dataset), folder, device)
    configure_torch(device, bench.precision, args.threads)
    return {
        **header(args, bench),
        "methods": [trial.method for trial in bench.cohorts[-1].trials],
        "plain": count(bench, recorded=False),
        "replayed": count(bench, recorded=True),
    }


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the counts."""
    table = Table("a step", "operations", "kernels", "launches")
    for name in ("plain", "replayed"):
        if found := figures.get(name):
            launches = str(sum(found["launches"].values())) if "launches" in found else "–"
            table.add_row(name, str(found["operations"]), str(found.get("kernels", "–")), launches)
    console.print(table, figures["machine"], sep="\n", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Count. Returns the exit code."""
    parser = build_parser(__doc__)
    parser.set_defaults(images="synthetic:6400")
    return command(parser.parse_args(argv), measure, show)


if __name__ == "__main__":
    sys.exit(main())
