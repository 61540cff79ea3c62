"""Check the methods against values computed with the authors' code."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdbench.cli.options import Parser, console


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py verify",
        description="Check the methods against values computed with the authors' code, in float64 and float32.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--golden", type=Path, required=True, metavar="DIR", help="folder of vectors and their index.json"
    )
    parser.add_argument("--require", default="", metavar="NAMES", help="names that must have a case, comma-separated")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N (default: cpu)")
    return parser


def main(args: argparse.Namespace) -> int:
    from rich.table import Table

    from kdbench.distill import registry
    from kdbench.train.device import configure_torch, resolve_device
    from kdbench.verify import check, vectors

    device = resolve_device(args.device)
    configure_torch(device, "fp32", None)
    golden = registry.golden()
    cases = vectors.load(args.golden)
    known = [case for case in cases if case.method in golden]
    comparisons = [
        check.check(case, *golden[case.method], precision, device) for case in known for precision in vectors.DTYPES
    ]

    table = Table("method", "case", "precision", "loss", "gradient", "result", box=None, pad_edge=False)
    for comparison in comparisons:
        errors = f"{comparison.loss:.1e}", f"{comparison.gradient:.1e}"
        result = "ok" if comparison.passed else "; ".join(comparison.problems)
        table.add_row(comparison.name, comparison.case, comparison.precision, *errors, result)
    console().print(table, highlight=False, markup=False)
    skipped = list(dict.fromkeys(case.method for case in cases if case.method not in golden))
    if skipped:
        print(f"no counterpart in kdbench: {', '.join(skipped)}")
    missing = [name for name in filter(None, args.require.split(",")) if name not in {case.method for case in known}]
    if missing:
        print(f"required, and without a case: {', '.join(missing)}")
    failed = sum(not comparison.passed for comparison in comparisons)
    print(f"{len(comparisons) - failed} of {len(comparisons)} within tolerance (worst relative errors are shown)")
    return 1 if failed or missing or not comparisons else 0
