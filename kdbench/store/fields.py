"""Between the frozen dataclasses and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdbench.spec import DataInfo, Recipe, Teacher, Trial

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError)
"""What reading a file that is missing, torn or written by something else may raise."""


def encode(value: object) -> bytes:
    """Text as it is stored. Raises ValueError for numbers that are not finite."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def data(fields: Mapping[str, Any]) -> DataInfo:
    return replace(DataInfo(**fields), mean=tuple(fields["mean"]), std=tuple(fields["std"]))


def recipe(fields: Mapping[str, Any]) -> Recipe:
    return replace(Recipe(**fields), milestones=tuple(fields["milestones"]))


def trial(fields: Mapping[str, Any]) -> Trial:
    teacher = Teacher(**fields["teacher"]) if fields["teacher"] else None
    return Trial(**{**fields, "data": data(fields["data"]), "recipe": recipe(fields["recipe"]), "teacher": teacher})
