"""kdbench: knowledge-distillation methods for image classifiers, compared under one protocol.

From Python:

    import kdbench

    table = kdbench.run(methods="kd,crd,icd", pairs="all", dataset="digits", out="results")
    table = kdbench.load_results("results")

The keywords of `run` are the long options of the command line. Importing kdbench loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"

__all__ = ["load_results", "register", "run"]


def run(study: str | Path | None = None, *, quiet: bool = False, **options: Any) -> pd.DataFrame:
    """Train what a study lacks and write its report, as `python bench.py` does.

    Args:
        study: a study file, as for `--study`; the options below take the place of what stands in it.
        quiet: print no progress.
        options: long options without their hyphens, such as `methods`, `pairs`, `dataset`, `val_fraction` or `out`;
            texts as on the command line, or lists.

    Returns:
        One row per (dataset, recipe, teacher, student, method), as in `tables/accuracy.csv`; failed and diverged trials
        are rows too.

    Raises:
        kdbench.core.errors.UserError: if an option is wrong; the message says how to correct it.
        KeyboardInterrupt: if it was interrupted; checkpoints are written first, and the same call continues.
    """
    from kdbench.api import run_study

    return run_study(None if study is None else Path(study), options, quiet=quiet)


def load_results(folder: str | Path) -> pd.DataFrame:
    """The accuracies of a results folder, one row per (dataset, recipe, teacher, student, method).

    Raises UserError if the folder holds no records.
    """
    from kdbench.api import load_table

    return load_table(Path(folder))


def register(name: str, hyper: type[Any], **description: Any) -> Callable[[Any], Any]:
    """Make a Distiller reachable as a method's name, in a file or in a notebook; see `kdbench.distill.register`."""
    from kdbench.distill import register

    return register(name, hyper, **description)
