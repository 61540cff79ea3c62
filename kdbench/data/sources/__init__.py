"""The readers of data sets, one file per kind; `registry` lists them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.data.cache import load_or_decode
from kdbench.data.dataset import Source, Split
from kdbench.data.identity import candidate, recognize
from kdbench.data.registry import entry
from kdbench.data.resident import ResidentDataset
from kdbench.data.subset import select

__all__ = ["Split", "prepare"]


def prepare(request: DataRequest, data_dir: Path) -> ResidentDataset:
    """Find, decode and select the requested data; downloads and the cache are in `data_dir`. Raises UserError."""
    data_dir = data_dir.expanduser()
    reader = import_module(entry(request.source).module)
    if request.label_column is not None and not request.source.startswith("parquet:"):
        raise UserError(f"--label-column {request.label_column!r} is for parquet:PATH; {request.source} has one label")
    if request.test_fraction and not request.source.startswith("folder:"):
        raise UserError(f"--test-fraction is for folder:PATH; {request.source} has a test split")
    try:
        source: Source = reader.find(request, data_dir)
        official = candidate(source)
        decoded = load_or_decode(source, official.side if official else request.size, data_dir)
        if official and (recognized := recognize(source, decoded, official)):
            source, decoded = recognized
        if official and request.size != official.side:
            decoded = load_or_decode(source, request.size, data_dir)
        return select(source, decoded, request)
    except OSError as error:
        raise UserError(f"{request.source} cannot be read: {error}") from error
