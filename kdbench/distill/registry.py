"""Which methods there are: files in `methods/` and the entry-point group `kdbench.methods`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from kdbench.core.catalog import MethodInfo, Setting
from kdbench.core.trial import Value
from kdbench.distill.distiller import Distiller, Hyper, Shapes

D = TypeVar("D", bound=type[Distiller[Any]])

_CONTRACT = ("kdbench.distill.distiller", "kdbench.distill.registry", "kdbench.models.output", "kdbench.data.resident")
"""What methods import but do not compute with; a change there is a change of protocol."""

_METHODS: dict[str, type[Distiller[Any]]] = {}
_CORE: set[str] = set()


def register(name: str, hyper: type[Hyper], *, paper: str, core: bool = False) -> Callable[[D], D]:
    """Make a Distiller reachable as `--methods NAME`.

    Args:
        hyper: the frozen dataclass of its settings.
        paper: an arXiv number or other reference; printed beside its row.
        core: whether `--methods all` includes it: the ICD paper's own comparison.

    Raises:
        TypeError: if `hyper` is no frozen dataclass of plain settings that inherits `Hyper`.
        ValueError: if the name is taken, is not lower-case letters, digits and underscores, or not its file's name.
    """

    def add(cls: D) -> D:
        settings_of(hyper)
        if name in _METHODS:
            raise ValueError(f"the method name {name!r} is taken by {_METHODS[name].__module__}")
        if not (name.isidentifier() and name == name.lower()):
            raise ValueError(f"a method's name is lower-case letters, digits and underscores, not {name!r}")
        package, _, file = cls.__module__.rpartition(".")
        if package == "kdbench.methods" and file != name:
            raise ValueError(f"methods/{file}.py registers {name!r}: a method is called as its file")
        cls.name, cls.hyper_type, cls.paper = name, hyper, paper
        _METHODS[name] = cls
        if core:
            _CORE.add(name)
        return cls

    return add


@cache
def discover() -> Mapping[str, str]:
    """Import every method once. Returns what could not be imported (module -> reason); the others are usable."""
    broken: dict[str, str] = {}
    package = importlib.import_module("kdbench.methods")
    for found in pkgutil.iter_modules(package.__path__, prefix="kdbench.methods."):
        if reason := _attempt(partial(importlib.import_module, found.name)):
            broken[found.name] = reason
    for point in entry_points(group="kdbench.methods"):
        if reason := _attempt(point.load):
            broken[point.value] = reason
    return broken


def _attempt(load: Callable[[], object]) -> str | None:
    before = dict(_METHODS)
    try:
        load()
    except Exception as error:
        _METHODS.clear()
        _METHODS.update(before)  # a file that failed half-way must not leave a method behind
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def distiller(name: str) -> type[Distiller[Any]]:
    """The class behind a method's name; `discover` must have run. Raises KeyError."""
    return _METHODS[name]


def hyper_of(name: str, settings: Mapping[str, Value]) -> Hyper:
    """The method's settings dataclass with `settings` over its defaults. Raises ValueError where they cannot be."""
    return _METHODS[name].hyper_type(**settings)  # type: ignore[arg-type]


def infos() -> dict[str, MethodInfo]:
    """Every registered method as the plan sees it, by name."""
    discover()
    return {name: _info(name, cls) for name, cls in sorted(_METHODS.items())}


def _info(name: str, cls: type[Distiller[Any]]) -> MethodInfo:
    def check(settings: Mapping[str, Value]) -> str | None:
        try:
            hyper_of(name, settings)
        except (TypeError, ValueError) as error:
            return str(error)
        return None

    summary = (inspect.getdoc(sys.modules[cls.__module__]) or inspect.getdoc(cls) or "").splitlines()
    return MethodInfo(
        name=name,
        paper=cls.paper,
        summary=summary[0] if summary else "",
        core=name in _CORE,
        settings=settings_of(cls.hyper_type),
        code=code_hash(cls),
        module=cls.__module__,
        check=check,
    )


def settings_of(hyper: type[Hyper]) -> tuple[Setting, ...]:
    """The fields of a settings dataclass; their help is the string in `Annotated[type, "help"]`. Raises TypeError."""
    if not (is_dataclass(hyper) and issubclass(hyper, Hyper)):
        raise TypeError(f"{hyper.__name__} must be a dataclass that inherits Hyper")
    hints = get_type_hints(hyper, include_extras=True)
    found = []
    for item in fields(hyper):
        hint = hints[item.name]
        kind, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        if kind not in (bool, int, float, str):
            raise TypeError(f"{hyper.__name__}.{item.name} must be bool, int, float or str, not {kind}")
        if item.default is MISSING:
            raise TypeError(f"{hyper.__name__}.{item.name} must have a plain default value")
        found.append(Setting(item.name, kind.__name__, kind(item.default), str(notes[0]) if notes else ""))
    return tuple(found)


def incompatibility(name: str, settings: Mapping[str, Value], shapes: Shapes) -> str | None:
    """What the method's `supports` says; where that raises, None: the trial then fails on its own, with its reason."""
    try:
        return _METHODS[name].supports(hyper_of(name, settings), shapes)
    except Exception:
        return None


def code_hash(cls: type[Distiller[Any]]) -> str:
    """Hash of what a method computes with: its file, the files beside it that it imports, and the shared parts of
    `kdbench.distill` that it names. Comments, docstrings and formatting are left out: only an edit that may change a
    result counts."""
    package = cls.__module__.rpartition(".")[0]
    shared = importlib.import_module("kdbench.distill")
    parts = {"soft_kl": _normal(inspect.getsource(shared.soft_kl))}  # the harness may add it to any method
    waiting = [cls.__module__]
    while waiting:
        name = waiting.pop()
        if name in parts:
            continue
        parts[name] = _normal(inspect.getsource(importlib.import_module(name)))
        for home, word in _imports(parts[name], package):
            if package and f"{home}.".startswith(f"{package}."):
                waiting += [each for each in (home, f"{home}.{word}") if each != package and _is_module(each)]
            elif home == shared.__name__:
                value = getattr(shared, word, None)
                if getattr(value, "__module__", None) not in (None, *_CONTRACT):
                    parts[f"{home}.{word}"] = _normal(inspect.getsource(value))  # type: ignore[arg-type]
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:16]


def _imports(source: str, package: str) -> list[tuple[str, str]]:
    """(module, name) of every import statement, wherever it stands; relative ones are those of `package`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            home = ".".join(filter(None, [package if node.level else "", node.module]))
            found += [(home, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.rpartition(".")[::2] for alias in node.names]
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _normal(source: str) -> str:
    tree = ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
