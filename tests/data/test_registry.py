from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from kdbench.core.errors import UserError
from kdbench.data.registry import describe_datasets, entry
from tests.data.build import get


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, kdbench.data.registry as registry; registry.describe_datasets(); "
        "print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_entry_has_a_line_and_a_reader() -> None:
    assert list(describe_datasets()) == [
        "cifar10",
        "cifar100",
        "digits",
        "stl10",
        "tiny-imagenet",
        "folder:PATH",
        "parquet:PATH",
    ]
    for name, line in describe_datasets().items():
        assert line
        assert callable(import_module(entry(name).module).find)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("cifra10", r"unknown data set 'cifra10': did you mean 'cifar10'\? see `python bench.py list datasets`"),
        ("./pets", r"unknown data set './pets': see"),
        ("folder", r"lacks a path: write folder:PATH"),
        ("parquet:", r"lacks a path: write parquet:PATH"),
        ("cifar10:/data", r"'cifar10' takes no path"),
    ],
)
def test_unknown_sources(source: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        get(source, tmp_path)


def test_a_label_column_is_for_parquet_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--label-column 'fine' is for parquet:PATH"):
        get("digits", tmp_path, label_column="fine")
