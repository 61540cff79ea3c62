"""The house: which room may import which, and that shared code names no method."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kdbench.core.trial import VANILLA
from kdbench.distill import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdbench"
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "plan": {"core"},
    "data": {"core"},
    "models": {"core"},
    "distill": {"core", "data", "models"},
    "methods": {"distill"},
    "verify": {"core", "data", "models", "distill"},
    "train": {"core", "data", "models", "distill"},
    "results": {"core"},
    "runner": {"core", "plan", "data", "models", "distill", "train", "results"},
    "report": {"core", "plan", "results"},
    "analysis": {"core", "data", "models", "train", "results", "report"},
    "api": {"core", "plan", "runner", "report", "results"},
    "cli": {
        *("core", "plan", "data", "models", "distill", "verify"),
        *("train", "results", "runner", "report", "analysis"),
    },
}
TORCH_FREE = {"core", "plan", "report"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    if room(path) == "__init__":
        assert {name.split(".")[1] for name in imported(path) if name.startswith("kdbench.")} == {"api", "distill"}
        return
    names = imported(path)
    rooms = {name.split(".")[1] for name in names if name.startswith("kdbench.")}
    assert rooms - {room(path), "__version__"} <= MAY_IMPORT[room(path)]
    assert not any(name.split(".")[0] == "methods" for name in names)
    if room(path) in TORCH_FREE:
        assert not any(name.split(".")[0] in ("torch", "torchvision", "timm") for name in names)


METHODS = sorted(path for path in (ROOT / "methods").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.name)
def test_methods_know_only_the_contract(path: Path) -> None:
    for name in imported(path):
        if name.split(".")[0] in ("kdbench", "bench", "methods"):
            assert name == "kdbench.distill" or name.startswith("kdbench.distill."), name
            assert name.count(".") == 1 or name.split(".")[2] in dir(__import__("kdbench.distill").distill)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.name)
def test_a_method_stays_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 150


WORDS = {"embed", "norm", "random"}
"""Methods whose names are words of any code: that nothing is special about them cannot be read from identifiers."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shared_code_names_no_method(path: Path) -> None:
    names = set(registry.infos()) - {VANILLA, "kd"} - WORDS
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        words = {
            getattr(node, "id", None),
            getattr(node, "attr", None),
            getattr(node, "arg", None),
            getattr(node, "name", None),
            node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None,
        }
        assert not words & names, f"{path.name}, line {getattr(node, 'lineno', '?')}"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "data"], ids=lambda path: path.name)
def test_images_come_from_loaders(path: Path) -> None:
    """No room but data/ knows splits, or which kind of data set it has."""
    assert not any(name.startswith("kdbench.data.resident") or name.endswith(".Split") for name in imported(path))
