"""Which methods there are: files in `methods/`, and those of packages with the entry-point group `kdbench.methods`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from kdbench.core.catalog import GROUP_NAMES, GROUPS, KINDS, MethodInfo, Published, Range, Setting
from kdbench.core.trial import Value
from kdbench.distill.code_hash import code_hash
from kdbench.distill.distiller import Distiller, Hyper
from kdbench.distill.golden import Golden
from kdbench.distill.step import Requires, Shapes

D = TypeVar("D", bound=type[Distiller[Any]])

PACKAGE = "kdbench.methods"
"""The package of our own methods, and the entry-point group of others."""

_METHODS: dict[str, type[Distiller[Any]]] = {}
_METADATA: dict[str, tuple[int | None, str, str]] = {}  # name -> year, kind, group
_INSTALLED: set[str] = set()  # names that came with an entry point


def register(
    name: str,
    hyper: type[Hyper],
    *,
    paper: str,
    year: int | None = None,
    kind: str = "logits",
    group: str = "own",
) -> Callable[[D], D]:
    """Make a Distiller reachable as `--methods NAME`.

    Args:
        hyper: the frozen dataclass of its settings.
        paper: an arXiv number or other reference; printed beside its row.
        year: of the paper.
        kind: what it distills: logits, features, relations, contrastive; or control.
        group: paper (the ICD paper's own comparison, `--methods all`), modern, control, adapted, or own.

    Raises:
        TypeError: if `hyper` is no frozen dataclass of plain settings that inherits `Hyper`.
        ValueError: if the name is taken, is not lower-case letters, digits and underscores, or not its file's name; if
            there is no such kind or group; if the name is that of a group of methods.
    """

    def add(cls: D) -> D:
        settings_of(hyper)
        if name in _METHODS and not _redefines(cls, _METHODS[name]):
            raise ValueError(f"the method name {name!r} is taken by {_METHODS[name].__module__}")
        if name in GROUP_NAMES:
            raise ValueError(f"{name!r} stands for several methods in --methods: choose another name")
        if not (name.isidentifier() and name == name.lower()):
            raise ValueError(f"a method's name is lower-case letters, digits and underscores, not {name!r}")
        package, _, file = cls.__module__.rpartition(".")
        if package == PACKAGE and file != name:
            raise ValueError(f"methods/{file}.py registers {name!r}: a method is called as its file")
        for value, known in ((kind, KINDS), (group, GROUPS)):
            if value not in known:
                raise ValueError(f"{name!r}: {value!r} is not one of {', '.join(known)}")
        cls.name, cls.hyper_type, cls.paper = name, hyper, paper
        _METHODS[name], _METADATA[name] = cls, (year, kind, group)
        return cls

    return add


def _redefines(cls: type[Distiller[Any]], known: type[Distiller[Any]]) -> bool:
    """Whether a notebook cell ran again."""
    return cls.__module__ == known.__module__ == "__main__" and cls.__qualname__ == known.__qualname__


@cache
def discover() -> Mapping[str, str]:
    """Import every method once. Returns what could not be imported (module -> reason); the others are usable."""
    broken: dict[str, str] = {}
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.iter_modules(package.__path__, prefix=f"{PACKAGE}."):
        if reason := _attempt(partial(_import, module.name)):
            broken[module.name] = reason
    before = set(_METHODS)
    for point in entry_points(group=PACKAGE):
        if reason := _attempt(point.load):
            broken[point.value] = reason
    _INSTALLED.update(_METHODS.keys() - before)
    return broken


def is_installed(name: str) -> bool:
    """Whether every process that discovers methods knows this one, so that it is not a notebook's or a plugin's."""
    return distiller(name).__module__.startswith(f"{PACKAGE}.") or name in _INSTALLED


def _import(name: str) -> None:
    check_published(importlib.import_module(name))


def check_published(module: ModuleType) -> None:
    """Raise TypeError if a method's module has a `PUBLISHED` that cannot be used."""
    entries = getattr(module, "PUBLISHED", ())
    if not (isinstance(entries, tuple) and all(isinstance(entry, Published) for entry in entries)):
        raise TypeError("PUBLISHED must be a tuple of Published; one of them is followed by a comma")
    for cls in [cls for cls in _METHODS.values() if cls.__module__ == module.__name__]:
        known = {setting.name for setting in settings_of(cls.hyper_type)}
        for entry in entries:
            for pair, settings in {"given": entry.given, **entry.pairs}.items():
                if unknown := settings.keys() - known:
                    raise TypeError(f"PUBLISHED, {pair}: {cls.name} has no setting {', '.join(sorted(unknown))}")


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
    """The class behind a method's name. Raises KeyError."""
    discover()
    return _METHODS[name]


def hyper_of(name: str, settings: Mapping[str, Value]) -> Hyper:
    """The method's settings dataclass with `settings` over its defaults. Raises ValueError where they cannot be."""
    return distiller(name).hyper_type(**settings)  # type: ignore[arg-type]


def requirements(name: str, settings: Mapping[str, Value]) -> Requires:
    """What the method requires under these settings."""
    return distiller(name).requires(hyper_of(name, settings))


def golden() -> dict[str, tuple[str, Golden]]:
    """Every name in the index of golden vectors that a method maps: name -> (method, mapping)."""
    discover()
    return {
        name: (method, mapping)
        for method, cls in _METHODS.items()
        for name, mapping in getattr(sys.modules[cls.__module__], "GOLDEN", {}).items()
    }


def infos() -> dict[str, MethodInfo]:
    """Every registered method as the plan sees it, by name."""
    discover()
    return {name: _info(name, cls) for name, cls in sorted(_METHODS.items())}  # type: ignore[arg-type]


def code(name: str) -> str | None:
    """The hash of a method's code; None if there is no such method."""
    discover()
    return _info(name, _METHODS[name]).code if name in _METHODS else None  # type: ignore[arg-type]


def source_file(name: str) -> str:
    """The path of a method's file."""
    return inspect.getfile(_METHODS[name])


def docstring(name: str) -> str:
    """The docstring of a method's file, or of its class."""
    cls = _METHODS[name]
    texts = [sys.modules[cls.__module__].__doc__, cls.__doc__]
    if cls.__module__ == "__main__":
        del texts[0]  # of a script or a notebook, not of the method
    return next((inspect.cleandoc(text) for text in texts if text), "")


@cache
def _info(name: str, cls: type[Distiller[Any]]) -> MethodInfo:
    def check(settings: Mapping[str, Value]) -> str | None:
        try:
            requirements(name, settings)
        except (TypeError, ValueError) as error:
            return str(error)
        return None

    summary = docstring(name).splitlines()
    year, kind, group = _METADATA[name]
    return MethodInfo(
        name=name,
        paper=cls.paper,
        year=year,
        kind=kind,
        group=group,
        summary=summary[0] if summary else "",
        settings=settings_of(cls.hyper_type),
        code=code_hash(cls),
        module=cls.__module__,
        check=check,
        extra_teachers=lambda settings: requirements(name, settings).extra_teachers,
        published=getattr(sys.modules[cls.__module__], "PUBLISHED", ()),
    )


def settings_of(hyper: type[Hyper]) -> tuple[Setting, ...]:
    """The fields of a settings dataclass, declared as `Annotated[type, "help", Range(...)]`. Raises TypeError."""
    if not (is_dataclass(hyper) and issubclass(hyper, Hyper)):
        raise TypeError(f"{hyper.__name__} must be a dataclass that inherits Hyper")
    hints = get_type_hints(hyper, include_extras=True)
    settings = []
    for item in fields(hyper):
        hint = hints[item.name]
        kind, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
        if kind not in (bool, int, float, str):
            raise TypeError(f"{hyper.__name__}.{item.name} must be bool, int, float or str, not {kind}")
        if item.default is MISSING:
            raise TypeError(f"{hyper.__name__}.{item.name} must have a plain default value")
        text = next((note for note in notes if isinstance(note, str)), "")
        searched = next((note for note in notes if isinstance(note, Range)), None)
        settings.append(Setting(item.name, kind.__name__, kind(item.default), text, searched))
    return tuple(settings)


def incompatibility(name: str, settings: Mapping[str, Value], shapes: Shapes) -> str | None:
    """Why the method cannot train this pair, or None: what it requires, then what its `supports` says.

    Where `supports` raises, None: the trial then fails on its own, with its reason.
    """
    try:
        return missing(requirements(name, settings), shapes) or distiller(name).supports(
            hyper_of(name, settings), shapes
        )
    except Exception:
        return None


def missing(requires: Requires, shapes: Shapes) -> str | None:
    """What of the requirements a pair cannot give, if anything."""
    count = len(shapes.teachers)
    if count < requires.min_teachers:
        return f"it needs at least {requires.min_teachers} teachers, and the pair has {count}"
    if requires.max_teachers is not None and count > max(1, requires.max_teachers):
        allowed = max(1, requires.max_teachers)
        return f"it is made for {allowed} teacher{'s' * (allowed > 1)}, and the pair has {count}"
    networks = (shapes.student, *shapes.teachers)
    if requires.pre_activations and not all(network.pre_activations for network in networks):
        return "a network of this pair has no feature maps before the activation"
    if requires.classifier and not all(network.classifier for network in networks):
        return "a network of this pair has no linear classifier"
    if requires.last_map and not all(network.last_map for network in networks):
        return "a network of this pair has no feature map whose mean is its embedding"
    if requires.teacher_batch_norms and not shapes.teacher.stage_batch_norms:
        return "the teacher does not expose the batch norms before its activations"
    return None
