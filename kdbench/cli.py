"""Words -> request -> plan -> records -> report. The commands: run (the default), list, report, verify."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from kdbench.plan import pairs, recipes
from kdbench.plan.words import parse_classes, parse_seeds
from kdbench.spec import (
    PRETRAINED,
    Catalogue,
    DataInfo,
    DataRequest,
    Pair,
    Plan,
    Record,
    Teacher,
    UserError,
    Value,
    file_sha256,
)

if TYPE_CHECKING:
    from kdbench.data.sources import ImageSet
    from kdbench.store import Store

DESCRIPTION = """\
Compare knowledge-distillation methods for image classifiers: every method trained under one protocol, on the same
batches, from the same initial weights, over several seeds.

other commands (each has --help):
  list methods|pairs|datasets|models|recipes
  report           rebuild tables and charts from the records of a results folder
  verify           compare the methods with values computed by their authors' code
"""

EXAMPLES = """\
examples:
  python bench.py --methods kd,crd,icd --pairs all --dataset digits       minutes on a CPU, nothing to download
  python bench.py --methods all,all+kd --pairs all --seeds 5              the paper's study on CIFAR-100
  python bench.py --methods "kd,kd(kd_temperature=2),icd(alpha=0.1)+kd" --pairs resnet56:resnet20
  python bench.py --methods kd,icd --pairs resnet20:resnet8 --dataset parquet:PATH --subset 10000 --epochs 6

The same command again goes on where it was stopped and trains only what is missing.
Exit code 0: all done; 1: a trial failed or diverged; 2: bad input; 130/143: interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """One clear sentence instead of the usage text, with the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        words = message.rpartition("unrecognized arguments: ")[2].split()
        options = [option for action in self._actions for option in action.option_strings]
        if "unrecognized" in message and words and (near := difflib.get_close_matches(words[0], options, n=1)):
            message += f"; did you mean {near[0]}?"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole program. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words and words[0] in COMMANDS else ""
    logging.basicConfig(format="kdbench: %(message)s", level=logging.WARNING)
    logging.getLogger("kdbench").setLevel(logging.INFO)
    # How long threads spin before they sleep, read when torch is loaded. By default so long that two runs on one
    # machine slow each other down a hundredfold; at this value a lone run is as fast, and two run ten times faster.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        if words and not command and not words[0].startswith("-"):
            near = difflib.get_close_matches(words[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(filter(None, COMMANDS))}"
            raise UserError(f"unknown command {words[0]!r}: {hint} (see `python bench.py --help`)")
        parser, carry = COMMANDS[command]
        signal.signal(signal.SIGTERM, _terminate)
        return carry(parser().parse_args(words[bool(command) :] or (["--help"] if not command else [])))
    except UserError as error:
        print(f"kdbench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has left: nothing more to say
        return 141
    except OSError as error:
        print(f"kdbench: {error}; what was finished is kept, and the same command goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nkdbench: interrupted; the same command goes on after the last whole epoch", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


# run


def _run_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python bench.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--methods", default="all", help="method expressions, comma-separated; `vanilla` is always included"
    )
    what.add_argument("--pairs", default="all", help="all, same, cross, or teacher:student,... (default: all)")
    what.add_argument("--seeds", default="3", help="how many (3, the default), or which (0,1,7)")
    what.add_argument("--recipe", help="training schedule (default: digits for digits, else paper)")
    what.add_argument("--epochs", type=int, help="shorten or lengthen the recipe; its milestones move along")
    what.add_argument("--lr", type=float, help="initial learning rate of every network")
    data = parser.add_argument_group("images")
    data.add_argument(
        "--dataset", default="cifar100", help="digits, cifar10, cifar100 (default), folder:PATH, parquet:PATH"
    )
    data.add_argument("--classes", help="label numbers to keep: 0-9 or 3,5,7")
    data.add_argument("--subset", type=int, metavar="N", help="keep N training images, stratified")
    data.add_argument("--size", type=int, help="pixels a side (default: the recipe's)")
    data.add_argument("--label-column", help="parquet only: which column holds the labels")
    data.add_argument("--data-dir", type=Path, help="downloads and decoded images (default: ~/.cache/kdbench)")
    teachers = parser.add_argument_group("teachers (default: trained once, with seed 0)")
    teachers.add_argument("--teacher", type=Path, metavar="FILE", help="checkpoint of the one teacher architecture")
    teachers.add_argument("--teacher-dir", type=Path, metavar="DIR", help="checkpoints named after their architectures")
    how = parser.add_argument_group("how and where")
    how.add_argument("--out", type=Path, default=Path("results"), help="results folder (default: results)")
    how.add_argument(
        "--dry-run", action="store_true", help="show trials, cohorts and the estimated time; train nothing"
    )
    how.add_argument("--rerun", metavar="STATUS", help="train again what ended as done, diverged or n/a (or all)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    how.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    how.add_argument("--threads", type=int, help="CPU threads (default: torch's choice, one a physical core)")
    return parser


def _run(args: argparse.Namespace) -> int:
    source = args.dataset
    recipe = recipes.recipe(args.recipe or recipes.default(source), epochs=args.epochs, lr=args.lr, size=args.size)
    seeds, chosen_pairs = parse_seeds(args.seeds), pairs.parse(args.pairs, source)
    rerun = _rerun(args.rerun)
    processors = os.cpu_count() or 1
    if args.threads is not None and not 1 <= args.threads <= processors:
        raise UserError(f"--threads must be between 1 and {processors}, the processors of this machine: {args.threads}")
    classes = parse_classes(args.classes) if args.classes else None
    request = DataRequest(source, recipe.size, classes, args.subset, args.label_column)

    from kdbench import models, runner  # torch from here on
    from kdbench.data.sources import prepare
    from kdbench.plan.expand import Request, expand
    from kdbench.plan.expressions import parse
    from kdbench.store import Store
    from kdbench.train import environment
    from kdbench.train.checkpoints import Checkpoints
    from kdbench.train.cohort import LocalExecutor

    device = environment.pick_device(args.device)
    precision = environment.pick_precision(args.precision, device, recipe.size)
    catalogue = _catalogue(None)
    methods = parse(args.methods, catalogue)
    canonical = [Pair(catalogue.model(p.teacher).name, catalogue.model(p.student).name) for p in chosen_pairs]
    chosen_pairs = tuple(dict.fromkeys(canonical))
    store = Store(args.out)
    if not args.dry_run:
        store.require_writable()
    images = prepare(request, args.data_dir or _data_dir())
    catalogue = _catalogue(images)
    for arch in dict.fromkeys(name for pair in chosen_pairs for name in (pair.teacher, pair.student)):
        models.features(arch, images.info.classes, images.info.size)  # or one sentence on what does not fit
    files = _teacher_files(args, chosen_pairs, images.info)
    plan = expand(
        Request(images.info, recipe, methods, chosen_pairs, seeds, precision, files), catalogue, store.standing(rerun)
    )
    if not args.dry_run:
        for arch in dict.fromkeys(trial.arch for trial in plan.waiting if trial.arch.endswith(PRETRAINED)):
            print(f"weights of {arch}: taken from the cache, or fetched ...", flush=True)
            models.fetch(arch, images.info.classes, images.info.size)
    environment.configure(device, precision, args.threads)
    checkpoints = Checkpoints(args.out / "checkpoints")
    _announce(plan, catalogue, sum(checkpoints.exists(trial.id) for trial in plan.waiting))
    if args.dry_run:
        return _estimate(plan, images, device)
    if plan.cohorts or plan.verdicts:
        from kdbench.progress import progress

        executor = LocalExecutor(images, device, checkpoints)
        with progress(_console(), plan) as observer:
            runner.carry_out(plan, store, executor, checkpoints, observer, environment.describe(device))
    wanted = {trial.fingerprint for trial in plan.trials}
    records = store.records()
    mine = [record for record in records if record.trial.fingerprint in wanted]
    _show(records, store, mine)
    missing = wanted - {record.trial.fingerprint for record in mine}
    return 1 if missing or any(record.status in ("failed", "diverged") for record in mine) else 0


def _rerun(text: str | None) -> frozenset[str]:
    known = ("done", "diverged", "failed", "n/a", "all")
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if word not in known:
            raise UserError(f"--rerun {word!r} is not one of {', '.join(known)}")
    return frozenset(known if "all" in words else words)


def _data_dir() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("kdbench")


def _catalogue(images: ImageSet | None) -> Catalogue:
    """What the plan may ask of methods and models; without images no method has an obstacle."""
    from kdbench import models
    from kdbench.distill import Shapes, registry

    infos = registry.infos()

    def obstacle(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
        assert images is not None
        student, teacher = (models.features(arch, data.classes, data.size) for arch in (pair.student, pair.teacher))
        family = models.info(pair.student).family
        shapes = Shapes(student, teacher, data.classes, images.train.labels, family)
        return registry.obstacle(name, settings, shapes)

    return Catalogue(infos, models.info, obstacle, registry.discover())


def _teacher_files(args: argparse.Namespace, chosen: Sequence[Pair], data: DataInfo) -> dict[str, Teacher]:
    archs = list(dict.fromkeys(pair.teacher for pair in chosen))
    if args.teacher is None and args.teacher_dir is None:
        return {}
    if args.teacher and args.teacher_dir:
        raise UserError("give --teacher FILE or --teacher-dir DIR, not both")
    if args.teacher and len(archs) > 1:
        raise UserError(
            f"--teacher FILE is for one architecture, and the pairs have {', '.join(archs)}: use --teacher-dir"
        )
    from kdbench.models import find_checkpoint, load_checkpoint

    found = {}
    for arch in archs:
        path = args.teacher or find_checkpoint(args.teacher_dir, arch)
        load_checkpoint(path, arch, data.classes, data.size)
        found[arch] = Teacher(arch, file=str(path.resolve()), sha256=file_sha256(path))
    return found


def _announce(plan: Plan, catalogue: Catalogue, resumed: int) -> None:
    for module, reason in catalogue.broken.items():
        logging.getLogger("kdbench").warning("%s is left out, it failed to import: %s", module, reason)
    print(
        f"{len(plan.trials)} trials: {len(plan.done)} already there, {len(plan.waiting)} to train in "
        f"{len(plan.cohorts)} cohorts, {len(plan.verdicts)} not applicable"
        + (f"; {resumed} go on from their checkpoints" if resumed else ""),
        flush=True,
    )


def _estimate(plan: Plan, images: ImageSet, device: Any) -> int:
    from kdbench.plan.estimate import duration, seconds
    from kdbench.train.calibrate import calibrate

    for number, cohort in enumerate(plan.cohorts, start=1):
        methods = (
            ", ".join(trial.method for trial in cohort.trials) if cohort.teacher else f"{len(cohort.trials)} networks"
        )
        print(f"  [{number}] {cohort.title}, seed {cohort.seed}: {methods}")
    for trial, reason in plan.verdicts:
        print(f"  n/a {trial.teacher.arch if trial.teacher else ''}:{trial.arch} {trial.method}: {reason}")
    if plan.cohorts:
        print("measuring a few steps of each network and each method ...", flush=True)
        costs = calibrate(plan, images, device)
        print(f"estimated time on this device: {duration(seconds(plan, costs))}")
    return 0


# report


def _report_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python bench.py report",
        description="Rebuild tables/ and charts/ of a results folder from its records.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="results folder (default: results)")
    return parser


def _report(args: argparse.Namespace) -> int:
    from kdbench.store import Store

    store = Store(args.out)
    records = store.records()
    if not records:
        raise UserError(f"{args.out} holds no records; train something first, or name the folder with --out")
    store.require_writable()
    _show(records, store, records)
    return 0


def _show(records: Sequence[Record], store: Store, shown: Sequence[Record]) -> None:
    """Write everything that is derived from the folder's records; print the tables of those shown."""
    from kdbench.report import cost, tables, write_report
    from kdbench.report.terminal import render, render_costs

    report = write_report(records, store.epochs, store.root, {record.trial.variant for record in shown})
    console = _console()
    for part in (
        *render_costs(cost.costs(shown), console.width),
        *render(tables.accuracy(shown), tables.footnotes(shown), console.width),
    ):
        console.print(part)
    for folder in dict.fromkeys(path.parent for path in report.paths):
        print(f"written: {folder}/")


def _console() -> Any:
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1, which means something else here

    console = Pipe()
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no edge to fold at
    return console


# verify


def _verify_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python bench.py verify",
        description="Compare the methods with values computed by their authors' code, in float64 and float32.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--golden", type=Path, required=True, metavar="DIR", help="folder of vectors and their index.json"
    )
    parser.add_argument("--require", default="", metavar="NAMES", help="names that must have a case, comma-separated")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N (default: cpu)")
    return parser


def _verify(args: argparse.Namespace) -> int:
    from rich.table import Table

    from kdbench.distill import registry
    from kdbench.train.environment import configure, pick_device
    from kdbench.verify import check, vectors

    registry.discover()
    device = pick_device(args.device)
    configure(device, "fp32", None)
    how = check.mapping()
    cases = vectors.load(args.golden)
    known = [case for case in cases if case.method in how]
    verdicts = [check.check(case, how[case.method], p, device) for case in known for p in vectors.DTYPES]

    table = Table("method", "case", "precision", "loss", "gradient", "verdict", box=None, pad_edge=False)
    for verdict in verdicts:
        errors = f"{verdict.loss:.1e}", f"{verdict.gradient:.1e}"
        word = "ok" if verdict.passed else "; ".join(verdict.problems)
        table.add_row(verdict.method, verdict.case, verdict.precision, *errors, word)
    console = _console()
    console.print(table, highlight=False, markup=False)
    skipped = list(dict.fromkeys(case.method for case in cases if case.method not in how))
    if skipped:
        print(f"no counterpart in kdbench: {', '.join(skipped)}")
    missing = [name for name in filter(None, args.require.split(",")) if name not in {case.method for case in known}]
    if missing:
        print(f"required, and without a case: {', '.join(missing)}")
    failed = sum(not verdict.passed for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} within tolerance (worst relative errors are shown)")
    return 1 if failed or missing or not verdicts else 0


# list


def _list_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python bench.py list", description="Show what there is.", allow_abbrev=False)
    parser.add_argument("what", choices=LISTS)
    parser.add_argument("--dataset", default="cifar100", help="for pairs: the data set whose named sets are shown")
    return parser


def _list(args: argparse.Namespace) -> int:
    from rich.table import Table

    header, rows = LISTS[args.what](args.dataset)
    console = _console()
    if not console.is_terminal:
        console.width = 10_000  # whole lines for grep
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    return 0


Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def _list_methods(_: str) -> Rows:
    catalogue = _catalogue(None)
    rows = [
        (
            info.name,
            "yes" if info.core else "",
            info.paper,
            info.summary,
            " ".join(f"{setting.name}={setting.default}" for setting in info.settings),
        )
        for info in catalogue.methods.values()
    ]
    rows += [(module, "", "", f"failed to import: {reason}", "") for module, reason in catalogue.broken.items()]
    return ("method", "in all", "paper", "what", "settings"), rows


def _list_pairs(source: str) -> Rows:
    named = pairs.sets(source)
    return ("set", "pair"), [(name, str(pair)) for name in named if name != "all" for pair in named[name]]


def _list_datasets(_: str) -> Rows:
    from kdbench.data.catalogue import describe

    return ("data set", "what"), list(describe().items())


def _list_models(_: str) -> Rows:
    from kdbench import models

    rows = []
    for name in models.names():
        info, profile = models.info(name), models.profile(name, 100, 32)
        cost = f"{profile.parameters / 1e6:.2f} M", f"{profile.macs / 1e6:.1f} M"
        rows.append((name, info.family, *cost, f"{info.smallest}x{info.smallest}"))
    rows.append(("timm/NAME", "timm", "", "", ""))
    return ("model", "family", "parameters", "multiply-accumulates at 32x32", "smallest input"), rows


def _list_recipes(_: str) -> Rows:
    return ("recipe", "what"), list(recipes.names().items())


LISTS: dict[str, Callable[[str], Rows]] = {
    "methods": _list_methods,
    "pairs": _list_pairs,
    "datasets": _list_datasets,
    "models": _list_models,
    "recipes": _list_recipes,
}

COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "": (_run_parser, _run),
    "list": (_list_parser, _list),
    "report": (_report_parser, _report),
    "verify": (_verify_parser, _verify),
}
