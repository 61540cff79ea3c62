"""Show what there is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from kdbench.cli.options import Parser, build_catalog, console
from kdbench.plan import pairs, recipes


def parser() -> argparse.ArgumentParser:
    found = Parser(prog="python bench.py list", description="Show what there is.", allow_abbrev=False)
    found.add_argument("what", choices=LISTS)
    found.add_argument("--dataset", default="cifar100", help="for pairs: the data set whose named sets are shown")
    return found


def carry(args: argparse.Namespace) -> int:
    from rich.table import Table

    header, rows = LISTS[args.what](args.dataset)
    to = console()
    if not to.is_terminal:
        to.width = 10_000  # whole lines for grep
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    to.print(table, highlight=False, markup=False)
    return 0


Rows = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def _list_methods(_: str) -> Rows:
    catalog = build_catalog(None)
    rows = [
        (
            info.name,
            "yes" if info.group == "paper" else "",
            info.paper,
            info.summary,
            " ".join(f"{setting.name}={setting.default}" for setting in info.settings),
        )
        for info in catalog.methods.values()
    ]
    rows += [(module, "", "", f"failed to import: {reason}", "") for module, reason in catalog.broken.items()]
    return ("method", "in all", "paper", "what", "settings"), rows


def _list_pairs(source: str) -> Rows:
    named = pairs.sets(source)
    return ("set", "pair"), [(name, str(pair)) for name in named if name != "all" for pair in named[name]]


def _list_datasets(_: str) -> Rows:
    from kdbench.data.registry import describe_datasets

    return ("data set", "what"), list(describe_datasets().items())


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
