"""Check the methods against values computed with the authors' code, or for what a GPU forbids."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdbench.cli.options import Parser, console
from kdbench.core.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python bench.py verify",
        description="Check the methods against values computed with the authors' code, in float64 and float32; or what "
        "their training steps would do on a GPU.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--golden", type=Path, metavar="DIR", help="folder of vectors and their index.json")
    what.add_argument(
        "--gpu", metavar="METHODS", help="methods whose steps are watched on the CPU for what a GPU forbids"
    )
    parser.add_argument("--require", default="", metavar="NAMES", help="names that must have a case, comma-separated")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N (default: cpu)")
    parser.add_argument(
        "--pair", default="wrn_40_2:wrn_16_2", help="with --gpu: teacher:student (default: %(default)s)"
    )
    parser.add_argument(
        "--plugins", type=Path, metavar="PATH", help="with --gpu: a file or folder of methods of your own"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    if args.gpu is None:
        return _golden(args)
    if args.require or args.device != "cpu":
        raise UserError("--require and --device go with --golden; --gpu watches steps on the CPU")
    return _gpu(args)


def _gpu(args: argparse.Namespace) -> int:
    """Say of each method whether its step can be recorded, and why not. Returns 1 if one cannot."""
    from rich.table import Table

    from kdbench.core.data import DataRequest
    from kdbench.data.registry import default_data_dir
    from kdbench.data.sources import prepare
    from kdbench.plan import pairs, recipes
    from kdbench.plan.expand import expand
    from kdbench.plan.expressions import parse
    from kdbench.plan.study import Study
    from kdbench.runner.catalog import build_catalog
    from kdbench.runner.plugins import load_plugins
    from kdbench.train.gpu_lint import lint_cohort

    if args.plugins is not None:
        load_plugins(args.plugins)
    if not args.gpu.strip():
        raise UserError("--gpu needs methods, as `list methods` names them")
    request, recipe = DataRequest("digits", 8), recipes.recipe("digits", epochs=2)
    dataset = prepare(request, default_data_dir())
    catalog = build_catalog(dataset)
    study = Study(request, recipe, parse(args.gpu, catalog), pairs.parse(args.pair, "digits"), (0,), "fp32")
    plan = expand(study, dataset.info, catalog)
    table = Table("method", "pair", "on a GPU", box=None, pad_edge=False)
    hindered = 0
    for cohort in plan.cohorts:
        found = lint_cohort(cohort, dataset) if cohort.teachers else {}
        for trial in cohort.trials if cohort.teachers else ():
            findings = found[trial.id]
            hindered += any(finding.plain for finding in findings)
            said = "; ".join(finding.sentence for finding in findings) or "nothing was found that a GPU forbids"
            table.add_row(trial.method, trial.pair, said)
    for trial, reason in plan.not_applicable:
        table.add_row(trial.method, trial.pair, f"n/a: {reason}")
    if not table.rows:
        raise UserError(f"--gpu {args.gpu!r} names no distillation method")
    console().print(table, highlight=False, markup=False)
    return 1 if hindered else 0


def _golden(args: argparse.Namespace) -> int:
    """Compare with the authors' values. Returns 1 if one is off."""
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
