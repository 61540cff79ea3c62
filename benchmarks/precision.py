"""Measure whether bf16 changes accuracies: the same trials in bf16 and in fp32, with one teacher, paired by seed.

    python benchmarks/precision.py --images DIR --json FILE

DIR holds images in the parquet layout. The teacher is trained once, in fp32. The interval is that of Student's t for
the mean of the differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kdbench.core.record import Record
from kdbench.report import statistics
from kdbench.results import Store

ROOT = Path(__file__).resolve().parents[1]


def difference(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """Mean of left - right over pairs of values, with its interval. Raises ValueError for fewer than two pairs."""
    values = [a - b for a, b in zip(left, right, strict=True)]
    test = statistics.difference(values)
    if test is None or test.low is None:
        raise ValueError("an interval needs at least two seeds")
    return {"mean": test.mean, "low": test.low, "high": test.high, "each": values}


def paired(bf16: Sequence[Record], fp32: Sequence[Record]) -> dict[str, Any]:
    """Per method: top-1 of the students in both precisions, seed by seed, and their difference in points."""
    in_bf16, in_fp32 = _by_method(bf16), _by_method(fp32)
    methods = {}
    for method in sorted(in_bf16):
        seeds = sorted(in_bf16[method].keys() & in_fp32[method].keys())
        left, right = ([accuracies[method][seed] for seed in seeds] for accuracies in (in_bf16, in_fp32))
        methods[method] = {
            "seeds": seeds,
            "bf16": left,
            "fp32": right,
            "fp32_sd": stdev(right) if len(right) > 1 else None,
            "difference": difference(left, right),
        }
    return methods


def _by_method(records: Sequence[Record]) -> Mapping[str, dict[int, float]]:
    """Method -> seed -> top-1 of the student architecture."""
    accuracies: defaultdict[str, dict[int, float]] = defaultdict(dict)
    student = next(record.trial.arch for record in records if record.trial.teachers)
    for record in records:
        if record.trial.arch == student and record.top1 is not None:
            accuracies[record.trial.method][record.trial.seed] = record.top1
    return accuracies


def main(argv: Sequence[str] | None = None) -> int:
    """Run both studies. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of parquet files")
    parser.add_argument("--json", type=Path, required=True, help="where the figures are written")
    parser.add_argument("--pair", default="resnet20:resnet8")
    parser.add_argument("--methods", default="kd,icd")
    parser.add_argument("--subset", default="5000", help="training images")
    parser.add_argument("--epochs", default="6", help="the paper's schedule in this many epochs")
    parser.add_argument("--seeds", default="5")
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        bench = [sys.executable, "bench.py", "--pairs", args.pair, "--dataset", f"parquet:{args.images.resolve()}"]
        bench += ["--subset", args.subset, "--epochs", args.epochs]
        first = ["--methods", "kd", "--seeds", "1", "--precision", "fp32", "--out", str(out / "teacher")]
        subprocess.run([*bench, *first], cwd=ROOT, check=True)
        arch, _, _ = args.pair.partition(":")
        trials = [record.trial for record in Store(out / "teacher").records()]
        teacher = next(trial for trial in trials if trial.arch == arch and not trial.teachers)
        bench += ["--methods", args.methods, "--seeds", args.seeds]
        bench += ["--teacher", str(out / "teacher" / "runs" / f"{teacher.id}.pt")]
        for precision in ("fp32", "bf16"):
            subprocess.run([*bench, "--precision", precision, "--out", str(out / precision)], cwd=ROOT, check=True)
        fp32 = Store(out / "fp32").records()
        methods = paired(Store(out / "bf16").records(), fp32)
    settings = {name: value for name, value in vars(args).items() if name != "json"} | {"images": args.images.name}
    machine = {name: value for name, value in fp32[0].environment.items() if name != "host"}
    figures = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "settings": settings, "methods": methods}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    for method, figure in methods.items():
        interval = figure["difference"]
        print(f"{method}: bf16 - fp32 {interval['mean']:+.2f} points [{interval['low']:+.2f}, {interval['high']:+.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
