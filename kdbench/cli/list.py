"""List methods, pairs, data sets, models or recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from kdbench.cli.options import Parser, add_plugins, console, load_plugins
from kdbench.core.catalog import KINDS, Catalog, MethodInfo
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import PUBLISHED
from kdbench.data.registry import describe_datasets
from kdbench.plan import pairs, recipes

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROW = 110  # characters; below this width, columns that the pages also show are left out
DROPPED_WHEN_NARROW = ("group", "paper", "what it does")

DESCRIPTION = "List what is available; `list methods NAME` shows the page of a method."


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python bench.py list", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("what", choices=LISTS)
    parser.add_argument("name", nargs="?", help="for methods: the method whose page is shown")
    parser.add_argument("--kind", choices=KINDS, help="for methods: only those of this kind")
    parser.add_argument("--dataset", default="cifar100", help="for pairs: the data set whose named sets are shown")
    add_plugins(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    args.recipes = load_plugins(args.plugins)
    if args.name and args.what != "methods":
        raise UserError(f"only methods have pages: `list {args.what}` takes no name")
    output = console()
    if args.name:
        for part in _method_page(args.name, _catalog()):
            output.print(part, highlight=False)
        return 0
    from rich.table import Table

    header, rows = LISTS[args.what](args)
    if not output.is_terminal:
        output.width = 10_000  # whole lines for grep
    narrow = output.width < NARROW
    shown = [number for number, column in enumerate(header) if not (narrow and column in DROPPED_WHEN_NARROW)]
    table = Table(*(header[number] for number in shown), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    output.print(table, highlight=False, markup=False)
    return 0


def _catalog() -> Catalog:
    from kdbench.runner.catalog import build_catalog  # imports torch, which the other lists do without

    return build_catalog()


Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def _list_methods(args: argparse.Namespace) -> Rows:
    catalog = _catalog()
    methods = [info for info in catalog.methods.values() if args.kind in (None, info.kind)]
    rows = []
    for info in methods:
        title, _, what = info.summary.partition(": ")
        facts = info.name, str(info.year or ""), info.kind, info.group, info.paper
        rows.append((*facts, _requirements(info), title, what))
    if not args.kind:
        broken = catalog.broken.items()
        rows += [(module, "", "", "", "", "", f"failed to import: {reason}", "") for module, reason in broken]
    return ("method", "year", "kind", "group", "paper", "requires", "name", "what it does"), rows


def _requirements(info: MethodInfo) -> str:
    """What the method requires under its default settings, in a few words."""
    from kdbench.distill import registry

    requires = registry.requirements(info.name, {})
    words = [f"{view.name} view" for view in requires.views]
    flags = [field.name for field in fields(requires) if field.type == "bool"]
    words += [flag.replace("pre_", "pre-").replace("_", " ") for flag in flags if getattr(requires, flag)]
    words += [f"{name} teacher" for name in requires.extra_teachers]
    if requires.min_teachers > 1:
        words.append(f"{requires.min_teachers} teachers or more")
    elif not requires.min_teachers and not requires.extra_teachers:
        words.append("no teacher")
    return ", ".join(words)


def _method_page(name: str, catalog: Catalog) -> Iterator[RenderableType]:
    """Docstring, settings and requirements of a method."""
    from rich.table import Table
    from rich.text import Text

    from kdbench.distill import registry

    info = catalog.methods.get(name)
    if info is None and (reason := catalog.broken.get(f"{registry.PACKAGE}.{name}")):
        raise UserError(f"the method {name!r} failed to import: {reason}")
    if info is None:
        raise unknown_name("method", name, catalog.methods, "see `python bench.py list methods`")
    summary, *body = registry.docstring(name).splitlines()
    yield Text.assemble((name, "bold"), f": {summary}")
    yield Text("\n".join(body))
    table = Table("setting", "type", "default", "searched", "what it is", box=None, pad_edge=False)
    for setting in info.settings:
        searched = setting.range
        text = f"{searched.low:g} to {searched.high:g}{', log' if searched.log else ''}" if searched else ""
        table.add_row(setting.name, setting.kind, str(setting.default), text, setting.help)
    yield table
    for entry in info.published:
        given = "".join(f", {setting}={value}" for setting, value in entry.given.items())
        published = Table(f"{info.name}{PUBLISHED}{given}", f"from {entry.source}", box=None, pad_edge=False)
        for pair, settings in entry.pairs.items():
            published.add_row(pair, ", ".join(f"{setting}={value}" for setting, value in settings.items()))
        yield Text()
        yield published
    year = f", {info.year}" if info.year else ""
    yield Text(f"\n{info.kind}; group {info.group}; {info.paper}{year}; requires: {_requirements(info) or 'nothing'}")
    yield Text(f"file: {registry.source_file(name)}")


def _list_pairs(args: argparse.Namespace) -> Rows:
    named = pairs.sets(args.dataset)
    return ("set", "pair"), [(name, str(pair)) for name in named if name != "all" for pair in named[name]]


def _list_datasets(_: argparse.Namespace) -> Rows:
    return ("data set", "what"), list(describe_datasets().items())


def _list_models(_: argparse.Namespace) -> Rows:
    from kdbench import models

    rows = []
    for name in models.names():
        info, profile = models.info(name), models.profile(name, 100, 32)
        cost = f"{profile.parameters / 1e6:.2f} M", f"{profile.macs / 1e6:.1f} M"
        rows.append((name, info.family, *cost, f"{info.smallest}x{info.smallest}"))
    rows.append(("timm/NAME", "timm", "", "", ""))
    return ("model", "family", "parameters", "multiply-accumulates at 32x32", "smallest input"), rows


def _list_recipes(args: argparse.Namespace) -> Rows:
    own = [(name, f"from {args.plugins}") for name in args.recipes]
    return ("recipe", "what"), [*recipes.names().items(), *own]


LISTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "methods": _list_methods,
    "pairs": _list_pairs,
    "datasets": _list_datasets,
    "models": _list_models,
    "recipes": _list_recipes,
}
