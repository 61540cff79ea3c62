"""The data sets by name. Imports nothing heavy, so that lists and help appear at once.

To add a data set, write one file in `sources/`, or a plugin, with

    SOURCES = {"NAME": "one line about it"}  # or {"KIND:PATH": ...} for data sets that lie at a path

    def find(request: DataRequest, data_dir: Path) -> Source: ...
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from kdbench.core.errors import UserError, unknown_name


@dataclass(frozen=True)
class Entry:
    """A data set, or a kind of data set that takes a path."""

    module: str  # that has `find`
    summary: str


_PLUGINS: dict[str, Entry] = {}


def add_plugin(module: ModuleType) -> None:
    """Register the `SOURCES` of a module, if it has any. Raises ValueError if a name is taken."""
    for name, summary in getattr(module, "SOURCES", {}).items():
        entry = Entry(module.__name__, summary)
        if _entries().get(name, entry) != entry:
            raise ValueError(f"the data set {name!r} is taken")
        _PLUGINS[name] = entry


def _entries() -> dict[str, Entry]:
    return {**_own_entries(), **_PLUGINS}


@cache
def _own_entries() -> dict[str, Entry]:
    """The `SOURCES` of the files in `sources/`, read without importing them."""
    entries: dict[str, Entry] = {}
    for path in sorted(Path(__file__).with_name("sources").glob("[!_]*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SOURCES":
                module = f"kdbench.data.sources.{path.stem}"
                entries |= {name: Entry(module, summary) for name, summary in ast.literal_eval(node.value).items()}
    return dict(sorted(entries.items(), key=lambda item: (":" in item[0], item[0])))


def describe_datasets() -> dict[str, str]:
    """Data set -> one line about it."""
    return {name: entry.summary for name, entry in _entries().items()}


def entry(source: str) -> Entry:
    """The entry for a source as the user writes it, such as `digits` or `folder:~/pets`. Raises UserError."""
    kind, colon, path = source.partition(":")
    forms = {form.partition(":")[0]: form for form in _entries()}
    if kind not in forms:
        raise unknown_name("data set", source, forms, "see `python bench.py list datasets`")
    form = forms[kind]
    if ":" in form and not path:
        raise UserError(f"data set {source!r} lacks a path: write {form}")
    if ":" not in form and colon:
        raise UserError(f"data set {source!r}: {kind!r} takes no path; your own images are folder:PATH or parquet:PATH")
    return _entries()[form]


def default_data_dir() -> Path:
    """The folder of downloads and decoded images, unless --data-dir names another."""
    import platformdirs

    return platformdirs.user_cache_path("kdbench")
