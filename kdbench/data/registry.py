"""The data sets by name. Imports nothing heavy, so that lists and help appear at once.

To add a data set, write `sources/FILE.py` with a function `find(request, data_dir) -> Source` and add a line here.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.core.errors import UserError, unknown_name


@dataclass(frozen=True)
class Entry:
    """A data set, or a kind of data set that takes a path."""

    reader: str  # module in sources/
    summary: str


_ENTRIES = {
    "digits": Entry("digits", "1,797 handwritten digits of 8x8 pixels, 10 classes; comes with scikit-learn"),
    "cifar10": Entry("cifar", "60,000 photographs of 32x32 pixels, 10 classes; downloaded when absent"),
    "cifar100": Entry("cifar", "60,000 photographs of 32x32 pixels, 100 classes; downloaded when absent"),
    "stl10": Entry("stl10", "13,000 photographs of 96x96 pixels, 10 classes; downloaded when absent (2.6 GB)"),
    "tiny-imagenet": Entry("tiny_imagenet", "110,000 photographs of 64x64 pixels, 200 classes; downloaded when absent"),
    "folder:PATH": Entry("folder", "your own images: train/ and test/ or val/, with one folder per class"),
    "parquet:PATH": Entry("parquet", "image sets as shared on the Hugging Face hub: a folder of parquet files"),
}


def describe_datasets() -> dict[str, str]:
    """Data set -> one line about it."""
    return {name: entry.summary for name, entry in _ENTRIES.items()}


def entry(source: str) -> Entry:
    """The entry for a source as the user writes it, such as `digits` or `folder:~/pets`. Raises UserError."""
    kind, colon, path = source.partition(":")
    forms = {form.partition(":")[0]: form for form in _ENTRIES}
    if kind not in forms:
        raise unknown_name("data set", source, forms, "see `python bench.py list datasets`")
    form = forms[kind]
    if ":" in form and not path:
        raise UserError(f"data set {source!r} lacks a path: write {form}")
    if ":" not in form and colon:
        raise UserError(f"data set {source!r}: {kind!r} takes no path; your own images are folder:PATH or parquet:PATH")
    return _ENTRIES[form]
