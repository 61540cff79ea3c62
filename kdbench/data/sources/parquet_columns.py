"""Which columns of a parquet file hold the images, the labels and the names of the classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from kdbench.core.errors import UserError


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, as the first training file has it."""

    image: str
    nested: bool  # struct<bytes, ...> rather than plain bytes
    label: str
    names: tuple[str, ...] | None  # class names, if the schema has them


def choose_columns(file: Path, schema: pa.Schema, wanted: str | None) -> Columns:
    """The columns of images and labels; `wanted` names the label column. Raises UserError."""
    image = _image_column(file, schema)
    labels = _label_columns(schema)
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    if wanted is not None:
        if wanted not in integers:
            known = ", ".join(integers) or "none"
            raise UserError(f"{file}: --label-column {wanted!r} is no column of integers; those are: {known}")
        label = wanted
    else:
        candidates = list(labels) or integers
        if not candidates:
            raise UserError(f"{file}: has no label column; expected a column of integers beside {image!r}")
        if len(candidates) > 1:
            raise UserError(
                f"{file}: several columns may hold the label; choose --label-column {' or '.join(candidates)}"
            )
        label = candidates[0]
    return Columns(image, pa.types.is_struct(schema.field(image).type), label, labels.get(label))


def _image_column(file: Path, schema: pa.Schema) -> str:
    structs = [field for field in schema if pa.types.is_struct(field.type)]
    whole = [field.name for field in structs if _bytes_field(field.type)]
    columns = whole or [field.name for field in schema if _is_binary(field.type)]
    if len(columns) > 1:  # masks, depth maps
        columns = [name for name in columns if name.lower() in ("image", "img")] or columns
    if len(columns) == 1:
        return str(columns[0])
    if columns:
        raise UserError(
            f"{file}: several columns may hold the image ({', '.join(columns)}); name the right one `image`"
        )
    for field in structs:
        if field.type.get_field_index("path") >= 0:
            raise UserError(
                f"{file}: column {field.name!r} holds paths, not the images themselves; save the set with them embedded"
            )
    raise UserError(
        f"{file}: has no image column; expected struct<bytes, path> or bytes among {', '.join(schema.names) or 'none'}"
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_field(kind: pa.DataType) -> bool:
    index = kind.get_field_index("bytes")
    return index >= 0 and _is_binary(kind.field(index).type)


def _label_columns(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The columns that the hub's metadata calls class labels, with the names of their classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(str(word) for word in feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and feature.get("names")
            and pa.types.is_integer(schema.field(name).type)
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # none, or somebody else's
        return {}
