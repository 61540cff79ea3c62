"""Methods, data sets and recipes from a user's own file or folder, as `--plugins PATH` names it.

A file may register methods (`kdbench.distill.register`), name data sets (`SOURCES` and `find`, see
`kdbench.data.registry`) and recipes (`RECIPES = {"NAME": {...}}`, with the fields of `[recipe.NAME]` in a study file).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kdbench.core.errors import UserError
from kdbench.data.registry import add_plugin
from kdbench.distill import registry

_PACKAGE = "kdbench_plugins"


def load_plugins(path: Path) -> dict[str, Mapping[str, Any]]:
    """Import a file, or every file of a folder whose name does not begin with `_`; returns their recipes.

    Raises UserError if there is no such file, or if one cannot be imported.
    """
    path = path.expanduser().resolve()
    files = sorted(path.glob("[!_]*.py")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise UserError(f"--plugins {path}: there is no Python file")
    registry.discover()  # first, so that a plugin cannot take the name of one of kdbench's methods
    package = sys.modules.setdefault(_PACKAGE, ModuleType(_PACKAGE))
    package.__path__ = list(dict.fromkeys([*getattr(package, "__path__", []), str(files[0].parent)]))
    recipes: dict[str, Mapping[str, Any]] = {}
    for file in files:
        try:
            module = importlib.import_module(f"{_PACKAGE}.{file.stem}")
            if Path(module.__file__ or "").resolve() != file:
                raise ImportError(f"{module.__file__} was loaded under this name; start Python again")
            registry.check_published(module)
            add_plugin(module)
            own = dict(getattr(module, "RECIPES", {}))
            if not all(isinstance(recipe, dict) for recipe in own.values()) or own.keys() & recipes.keys():
                raise ValueError("RECIPES must be a mapping of names to mappings, each name once")
            recipes |= own
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--plugins: {file} failed to import: {reason}") from error
    return recipes


def known_to_workers(method: str) -> bool:
    """Whether a process that loads the same plugins has the method: not if it was registered by hand."""
    return registry.is_installed(method) or registry.distiller(method).__module__.startswith(f"{_PACKAGE}.")
