"""A hash of the code that a method computes with: when it changes, the method's trials run again."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import linecache
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from kdbench.distill.distiller import Distiller

_CONTRACT = (
    *("kdbench.distill.distiller", "kdbench.distill.step", "kdbench.distill.registry", "kdbench.distill.golden"),
    *("kdbench.models.output", "kdbench.data.dataset", "kdbench.data.views", "kdbench.core.catalog"),
)
"""What methods import but do not compute with; a change there is a change of protocol."""

_NOT_CODE = ("GOLDEN", "PUBLISHED")
"""Names of a method's data that no training reads, nor what they alone refer to: the settings of `NAME@published` are
part of a trial themselves."""


def code_hash(cls: type[Distiller[Any]]) -> str:
    """Hash of a method's file, of the files beside it that it imports, and of what it imports from `kdbench.distill`.

    Of a class in a notebook the cell is hashed. Raises ValueError if there is no source.

    Comments, docstrings, formatting, help texts in `Annotated`, `GOLDEN`, `PUBLISHED` and the names of modules are left
    out, so that only an edit that may change a result counts, and a checkout and a wheel agree.
    """
    package = cls.__module__.rpartition(".")[0]
    shared = importlib.import_module("kdbench.distill")
    parts = {"soft_kl": _normalized(_tree(inspect.getsource(shared.soft_kl)))}  # the trainer may add it to any method
    pending = [cls.__module__]
    while pending:
        name = pending.pop()
        if name in parts:
            continue
        tree = _tree(_source(cls) if name == "__main__" else inspect.getsource(importlib.import_module(name)))
        for module, word in _imports(tree, package):
            if package and f"{module}.".startswith(f"{package}."):
                candidates = (module, f"{module}.{word}")
                pending += [candidate for candidate in candidates if candidate != package and _is_module(candidate)]
            elif module == shared.__name__:
                home = getattr(getattr(shared, word, None), "__module__", None)
                if home is not None and home not in _CONTRACT:
                    parts[f"{module}.{word}"] = _shared(home, word)
        parts[name] = _normalized(tree)
    return hashlib.sha256(repr(sorted(parts.values())).encode()).hexdigest()[:16]


@cache
def _shared(module: str, word: str) -> str:
    """What computes of a name of a module that any method may import."""
    return _normalized(_definitions(_tree(inspect.getsource(importlib.import_module(module))), word))


def _normalized(tree: ast.Module) -> str:
    return ast.unparse(_Normalizer().visit(tree))


def _source(cls: type[Distiller[Any]]) -> str:
    """The source of a script's main module, or of the notebook cell that defines the class. Raises ValueError."""
    try:
        return inspect.getsource(importlib.import_module("__main__"))
    except (OSError, TypeError):
        functions = (value for value in vars(cls).values() if inspect.isfunction(value))
        lines = next((linecache.getlines(function.__code__.co_filename) for function in functions), [])
        if not lines:
            raise ValueError(f"the code of {cls.__name__} cannot be read: define it in a file or a notebook") from None
        return "".join(lines)


def _tree(source: str) -> ast.Module:
    return ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)


def _definitions(tree: ast.Module, word: str) -> ast.Module:
    """What defines a name in a module: its definition, and those in the module that it refers to."""
    known = {name: node for node in tree.body for name in _names(node)}
    pending, needed = [word], dict[str, ast.stmt]()
    while pending:
        if (name := pending.pop()) in known and name not in needed:
            needed[name] = known[name]
            pending += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return ast.Module(body=[node for node in tree.body if node in needed.values()], type_ignores=[])


def _names(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _private_data(statements: Mapping[ast.stmt, set[str]]) -> list[ast.stmt]:
    """The statements, given with the names that each reads, that define only private names which no other reads."""
    readers = Counter(name for read in statements.values() for name in read)

    def is_unread(statement: ast.stmt) -> bool:
        names = [] if getattr(statement, "decorator_list", []) else _names(statement)
        private = (name.startswith("_") and readers[name] == (name in statements[statement]) for name in names)
        return bool(names) and all(private)

    return [statement for statement in statements if is_unread(statement)]


def _imports(tree: ast.Module, package: str) -> list[tuple[str, str]]:
    """(module, name) of every import statement, wherever it stands; relative ones are those of `package`."""
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, [package if node.level else "", node.module]))
            imports += [(module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            imports += [alias.name.rpartition(".")[::2] for alias in node.names]
    return imports


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class _Normalizer(ast.NodeTransformer):
    """Leaves only what computes."""

    def _without_docstring(self, node: Any) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_Module(self, node: ast.Module) -> Any:
        kept = [statement for statement in node.body if not set(_names(statement)) & set(_NOT_CODE)]
        read = {
            statement: {inner.id for inner in ast.walk(statement) if isinstance(inner, ast.Name)} for statement in kept
        }
        while unused := _private_data(read):
            for statement in unused:
                del read[statement]
        node.body = list(read)
        return self._without_docstring(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        return ast.ImportFrom(module="module", names=node.names, level=0)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.generic_visit(node.slice.elts[0])
        return self.generic_visit(node)
