"""The code hash changes with what a method computes, and with nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from kdbench.distill import registry
from kdbench.distill.code_hash import _shared, code_hash

METHOD = '''"""A method.

Loss: none.
"""

from dataclasses import dataclass
from typing import Annotated

from kdbench.distill import Distiller, Golden, Hyper, MemoryBank, Range, register

from {package}.constants import OFFSET, scale


@dataclass(frozen=True)
class MineHyper(Hyper):
    mine_weight: Annotated[float, "how much", Range(0.1, 10.0)] = 1.0


class Mine(Distiller[MineHyper]):
    """A class."""

    def losses(self, step):
        """Its terms."""
        return {{"x": 2 * scale(step.student.logits.sum()) + OFFSET}}  # a comment


GOLDEN = {{"mine": Golden(student={{"logits": "y_s"}})}}
'''
CONSTANTS = "OFFSET = 3\n\n\ndef scale(x):\n    return x\n"

KEPT = {
    "a docstring": [("Its terms.", "The terms."), ("A method.", "Another text."), ("A class.", "The class.")],
    "a comment": [("# a comment", "# another comment"), ("class Mine(", "# one more\nclass Mine(")],
    "the layout": [("2 * scale(step.student.logits.sum())", "(2 * scale(\n step.student.logits.sum()))")],
    "a help text": [('"how much"', '"how very much"')],
    "a search range": [("Range(0.1, 10.0)", "Range(0.5, 20.0, log=True)")],
    "the golden mapping": [('"y_s"', '"other"')],
}
CHANGED = {
    "a number": ("2 * scale", "4 * scale"),
    "a default": ("= 1.0", "= 2.0"),
    "a type": ("Annotated[float", "Annotated[int"),
}


def hash_of(folder: Path, method: str, constants: str = CONSTANTS, package: str = "their_methods") -> str:
    """The hash of a method in a package of this folder."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (folder / package / "constants.py").write_text(constants)
    (folder / package / "mine.py").write_text(method.format(package=package))
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        mine: Any = importlib.import_module(f"{package}.mine").Mine
        return code_hash(mine)
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.split(".")[0] == package]:
            del sys.modules[module]


@pytest.fixture
def original(tmp_path: Path) -> str:
    return hash_of(tmp_path / "original", METHOD)


@pytest.mark.parametrize("what", KEPT)
def test_what_does_not_compute_does_not_count(tmp_path: Path, original: str, what: str) -> None:
    for number, (text, replacement) in enumerate(KEPT[what]):
        assert text in METHOD
        edited = METHOD.replace(text, replacement)
        assert hash_of(tmp_path / str(number), edited) == original, text


def test_neither_the_folder_nor_the_name_of_the_package_counts(tmp_path: Path, original: str) -> None:
    """A checkout, a wheel and a plugin agree."""
    assert hash_of(tmp_path / "elsewhere", METHOD) == original
    assert hash_of(tmp_path / "renamed", METHOD, package="other_methods") == original


@pytest.mark.parametrize("what", CHANGED)
def test_what_computes_counts(tmp_path: Path, original: str, what: str) -> None:
    text, replacement = CHANGED[what]
    assert text in METHOD
    assert hash_of(tmp_path / "edited", METHOD.replace(text, replacement)) != original


def test_files_beside_the_method_count(tmp_path: Path, original: str) -> None:
    assert hash_of(tmp_path / "edited", METHOD, CONSTANTS.replace("3", "4")) != original


def test_shared_code_counts_that_the_method_reaches(
    tmp_path: Path, original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory bank that it imports calls a function of its module; attention is of no concern to it."""
    source_of = inspect.getsource
    path = "kdbench.distill.memory_bank"

    def edited(text: str, replacement: str, name: str) -> Any:
        def getsource(item: Any) -> str:
            source: str = source_of(item)
            if getattr(item, "__name__", None) == name:
                assert text in source
                source = source.replace(text, replacement)
            return source

        return getsource

    # No process has to read twice, but for the edits here.
    monkeypatch.setattr("kdbench.distill.code_hash._shared", _shared.__wrapped__)
    monkeypatch.setattr(inspect, "getsource", edited("/ temperature)", "/ temperature / 2)", path))
    assert hash_of(tmp_path / "scores", METHOD) != original
    monkeypatch.setattr(inspect, "getsource", edited("images are of one class", "images have one class", path))
    assert hash_of(tmp_path / "unreached", METHOD) == original


def test_every_method_of_the_registry_has_its_own_hash() -> None:
    hashes = {info.code for info in registry.infos().values()}
    assert len(hashes) == len(registry.infos())
    assert all(len(value) == 16 and ast.literal_eval(f"0x{value}") for value in hashes)
