"""Convert the frozen dataclasses to and from JSON that ends in its own checksum.

Records may come from other people: values are read only if they are exactly of the declared types.
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

_MAX_BYTES = 2**26  # of a file; a record with a thousand epochs has less than 2**20


def dumps_checksummed(value: Mapping[str, object]) -> bytes:
    """JSON whose last field is the SHA-256 of the text before it. Raises ValueError for inf and NaN."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode()
    body = text.removesuffix(b"\n}")
    return body + _checksum_field(body)


def _checksum_field(body: bytes) -> bytes:
    return f',\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def load_checksummed(path: Path) -> dict[str, Any]:
    """The value that was given to `dumps_checksummed`, from a file. Raises DamagedFile or OSError."""
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise DamagedFile(f"it has more than {_MAX_BYTES:,} bytes")
    body = content[: -len(_checksum_field(b""))]
    if not body or content[len(body) :] != _checksum_field(body):
        raise DamagedFile("its checksum does not agree")
    try:
        value = json.loads(body + b"\n}", parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFile("it is not a JSON object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def build(kind: type[T], value: object) -> T:
    """An instance of a dataclass, nested ones included, from JSON. Raises TypeError for values of another type."""
    instance: T = _conform(kind, value, kind.__name__)
    return instance


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _conform(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        if not isinstance(value, dict) or not value.keys() <= hints.keys():
            raise TypeError(f"{where} is not a {hint.__name__}")
        return hint(**{name: _conform(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for option in args:
            try:
                return _conform(option, value, where)
            except TypeError:
                if is_dataclass(option) and isinstance(value, dict):
                    raise  # its message is more precise than the one below
    elif origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            types = args[:1] * len(value) if args[1:] == (...,) else args
            if len(types) == len(value):
                return tuple(_conform(kind, item, where) for kind, item in zip(types, value, strict=True))
    elif origin is Mapping:
        if isinstance(value, dict):
            for name in value:
                _conform(str, name, f"a key of {where}")
            return {name: _conform(args[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    elif _matches(hint, value):
        return value
    raise TypeError(f"{where} is of the wrong type: {str(value)[:40]!r}")


def _matches(hint: Any, value: Any) -> bool:
    if hint is str:
        return isinstance(value, str) and plain(value) == value
    if hint is float:  # JSON does not tell 1 from 1.0
        return type(value) in (int, float)
    if hint is Any:
        return True
    return type(value) is (NoneType if hint is None else hint)
