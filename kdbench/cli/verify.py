"""Compare the methods with values that their authors' code computed."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdbench.cli.options import Parser, console


def parser() -> argparse.ArgumentParser:
    found = Parser(
        prog="python bench.py verify",
        description="Compare the methods with values computed by their authors' code, in float64 and float32.",
        allow_abbrev=False,
    )
    found.add_argument(
        "--golden", type=Path, required=True, metavar="DIR", help="folder of vectors and their index.json"
    )
    found.add_argument("--require", default="", metavar="NAMES", help="names that must have a case, comma-separated")
    found.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N (default: cpu)")
    return found


def carry(args: argparse.Namespace) -> int:
    from rich.table import Table

    from kdbench.distill import registry
    from kdbench.train.device import configure_torch, resolve_device
    from kdbench.verify import check, vectors

    registry.discover()
    device = resolve_device(args.device)
    configure_torch(device, "fp32", None)
    how = check.mapping()
    cases = vectors.load(args.golden)
    known = [case for case in cases if case.method in how]
    verdicts = [check.check(case, how[case.method], p, device) for case in known for p in vectors.DTYPES]

    table = Table("method", "case", "precision", "loss", "gradient", "verdict", box=None, pad_edge=False)
    for verdict in verdicts:
        errors = f"{verdict.loss:.1e}", f"{verdict.gradient:.1e}"
        word = "ok" if verdict.passed else "; ".join(verdict.problems)
        table.add_row(verdict.method, verdict.case, verdict.precision, *errors, word)
    to = console()
    to.print(table, highlight=False, markup=False)
    skipped = list(dict.fromkeys(case.method for case in cases if case.method not in how))
    if skipped:
        print(f"no counterpart in kdbench: {', '.join(skipped)}")
    missing = [name for name in filter(None, args.require.split(",")) if name not in {case.method for case in known}]
    if missing:
        print(f"required, and without a case: {', '.join(missing)}")
    failed = sum(not verdict.passed for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} within tolerance (worst relative errors are shown)")
    return 1 if failed or missing or not verdicts else 0
