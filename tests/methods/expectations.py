"""What the shared tests of this folder must know of a method beyond its contract.

A method that has nothing special to say declares nothing. Another declares in its test module, `test_NAME.py`:

    EXPECTED = Expectations(...)
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.core.trial import Value
from kdbench.distill import Output, registry

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(name for name, info in registry.infos().items() if info.module == f"{registry.PACKAGE}.{name}")
"""The methods of this project, without those of installed packages."""


@dataclass(frozen=True)
class Prediction:
    """The loss that the paper's formula predicts for a student whose outputs equal its teacher's.

    `predict(method, output)` may set the method's parameters and memories. It returns the method's own terms, worked
    out in plain Python; those of the pretraining are called `pretraining NAME`.
    """

    predict: Callable[[Any, Output], dict[str, float]]
    settings: Mapping[str, Value] = field(default_factory=dict)
    independent_of_student: frozenset[str] = frozenset()  # terms that do not change with the student's output


@dataclass(frozen=True)
class Mutation:
    """A wrong factor that the authors' vectors must reveal."""

    target: str  # dotted path of what is replaced
    edit: Callable[[Any], Any]  # the original -> what replaces it


@dataclass(frozen=True)
class Expectations:
    """What is special about a method; the defaults are those of a method with nothing special."""

    unsupported: str | None = None
    """Part of the reason that the method gives for the pairs that it does not support; None: it supports all."""
    refused: tuple[Mapping[str, Value], ...] = ()
    """Settings that it refuses."""
    effective: Mapping[str, Value] = field(default_factory=dict)
    """Setting -> a value with another effect than its default, for settings that are bounded or are a text."""
    without_effect: Mapping[str, str] = field(default_factory=dict)
    """Setting -> why it has no effect in one training step."""
    predictions: tuple[Prediction, ...] = ()
    mutations: Mapping[str, Mutation] = field(default_factory=dict)
    """Name of golden vectors -> the mutation they are tried with; by default all terms are multiplied by 1.001."""


def expectations(name: str) -> Expectations:
    """What the method's test module declares; the defaults if it declares nothing."""
    expected = getattr(test_module(name), "EXPECTED", Expectations())
    assert isinstance(expected, Expectations)
    return expected


def test_module(name: str) -> Any:
    """The test module of a method. Raises AssertionError if there is none, or if it has no test."""
    module = f"{__package__}.test_{name}"
    path = f"tests/methods/test_{name}.py"
    assert importlib.util.find_spec(module) is not None, (
        f"the method {name!r} has no {path}: write it, with at least one value of the loss that is worked out by hand"
    )
    tests = importlib.import_module(module)
    assert any(item.startswith("test_") and callable(getattr(tests, item)) for item in vars(tests)), (
        f"{path} has no test: write one with a value of the loss that is worked out by hand"
    )
    return tests


test_module.__test__ = False  # type: ignore[attr-defined]  # not a test, where a test module imports it
