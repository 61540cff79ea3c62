"""Between the frozen dataclasses and JSON that carries its own checksum.

Records come from other people too: what is read is exactly of the declared types, or it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kdbench.core.errors import plain
from kdbench.core.files import DamagedFile

T = TypeVar("T")

_LARGEST = 2**26  # bytes of one file; a record with a thousand epochs has less than one of 2**20


def dumps_checksummed(value: Mapping[str, object]) -> bytes:
    """JSON as it is stored: its last field is the SHA-256 of the text before. Raises ValueError for inf and NaN."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode()
    body = text.removesuffix(b"\n}")
    return body + _end(body)


def _end(body: bytes) -> bytes:
    return f',\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def load_checksummed(path: Path) -> dict[str, Any]:
    """What was given to `seal`, from a file. Raises DamagedFile or OSError."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise DamagedFile(f"it has more than {_LARGEST:,} bytes")
    body = content[: -len(_end(b""))]
    if not body or content[len(body) :] != _end(body):
        raise DamagedFile("its checksum does not agree")
    try:
        value = json.loads(body + b"\n}", parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFile("it is not a JSON object")
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def build(kind: type[T], value: object) -> T:
    """A dataclass, and those in it, from what JSON has. Raises TypeError where a value is not of the declared type."""
    built: T = _conform(kind, value, kind.__name__)
    return built


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _conform(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        if not isinstance(value, dict) or not value.keys() <= hints.keys():
            raise TypeError(f"{where} is not a {hint.__name__}")
        return hint(**{name: _conform(hints[name], part, f"{where}.{name}") for name, part in value.items()})
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for option in args:
            try:
                return _conform(option, value, where)
            except TypeError:
                if is_dataclass(option) and isinstance(value, dict):
                    raise  # says more than that no option fits
    elif origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            kinds = args[:1] * len(value) if args[1:] == (...,) else args
            if len(kinds) == len(value):
                return tuple(_conform(each, part, where) for each, part in zip(kinds, value, strict=True))
    elif origin is Mapping:
        if isinstance(value, dict):
            for name in value:
                _conform(str, name, f"a key of {where}")
            return {name: _conform(args[1], part, f"{where}[{name!r}]") for name, part in value.items()}
    elif _is(hint, value):
        return value
    raise TypeError(f"{where} is of the wrong type: {str(value)[:40]!r}")


def _is(hint: Any, value: Any) -> bool:
    if hint is str:
        return isinstance(value, str) and plain(value) == value
    if hint is float:  # JSON has one kind of number
        return type(value) in (int, float)
    if hint is Any:
        return True
    return type(value) is (NoneType if hint is None else hint)
