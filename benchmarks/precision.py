"""Whether bf16 changes accuracies: the same trials in bf16 and in fp32, taught by the same network, paired by seed.

    python benchmarks/precision.py --images DIR --json FILE

DIR holds images in the parquet layout. The teacher is trained once, in fp32. The interval is Student's, for the mean of
the differences.
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

from kdbench.core.record import Record
from kdbench.report import statistics
from kdbench.results import Store

ROOT = Path(__file__).resolve().parents[1]


def difference(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """Mean of left - right over pairs, with its interval. Raises ValueError for fewer than two pairs."""
    each = [a - b for a, b in zip(left, right, strict=True)]
    found = statistics.difference(each)
    if found is None or found.low is None:
        raise ValueError("an interval needs at least two seeds")
    return {"mean": found.mean, "low": found.low, "high": found.high, "each": each}


def paired(bf16: Sequence[Record], fp32: Sequence[Record]) -> dict[str, Any]:
    """Per method: top-1 of the students in both precisions, seed by seed, and their difference in points."""
    mine, other = _by_method(bf16), _by_method(fp32)
    found = {}
    for method in sorted(mine):
        seeds = sorted(mine[method].keys() & other[method].keys())
        left, right = ([of[method][seed] for seed in seeds] for of in (mine, other))
        spread = stdev(right) if len(right) > 1 else None
        found[method] = {"seeds": seeds, "bf16": left, "fp32": right, "fp32_sd": spread}
        found[method]["difference"] = difference(left, right)
    return found


def _by_method(records: Sequence[Record]) -> Mapping[str, dict[int, float]]:
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    student = next(record.trial.arch for record in records if record.trial.teacher)
    for record in records:
        if record.trial.arch == student and record.top1 is not None:
            found[record.trial.method][record.trial.seed] = record.top1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of parquet files")
    parser.add_argument("--json", type=Path, required=True, help="where the figures are written")
    parser.add_argument("--pair", default="resnet20:resnet8")
    parser.add_argument("--methods", default="kd,icd")
    parser.add_argument("--subset", default="5000", help="training images")
    parser.add_argument("--epochs", default="6", help="the paper's schedule in this many epochs")
    parser.add_argument("--seeds", default="5")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        out = Path(folder)
        data = f"parquet:{args.images.resolve()}"
        argv = [sys.executable, "bench.py", "--pairs", args.pair, "--dataset", data]
        argv += ["--subset", args.subset, "--epochs", args.epochs]
        taught = out / "teacher"
        alone = ["--methods", "kd", "--seeds", "1", "--precision", "fp32", "--out", str(taught)]
        subprocess.run([*argv, *alone], cwd=ROOT, check=True)
        arch = args.pair.split(":")[0]
        teacher = next(each for each in Store(taught).records() if each.trial.arch == arch and not each.trial.teacher)
        argv += ["--methods", args.methods, "--seeds", args.seeds]
        argv += ["--teacher", str(taught / "runs" / f"{teacher.trial.id}.pt")]
        for precision in ("fp32", "bf16"):
            subprocess.run([*argv, "--precision", precision, "--out", str(out / precision)], cwd=ROOT, check=True)
        fp32 = Store(out / "fp32").records()
        methods = paired(Store(out / "bf16").records(), fp32)
    settings = {name: value for name, value in vars(args).items() if name != "json"} | {"images": args.images.name}
    machine = {name: value for name, value in fp32[0].environment.items() if name != "host"}
    figures = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "settings": settings, "methods": methods}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    for method, found in methods.items():
        gap = found["difference"]
        print(f"{method}: bf16 - fp32 {gap['mean']:+.2f} points [{gap['low']:+.2f}, {gap['high']:+.2f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
