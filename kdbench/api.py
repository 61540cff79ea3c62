"""Behind `kdbench.run` and `kdbench.load_results`: studies from Python, without a command line."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from kdbench.core.errors import UserError, unknown_name
from kdbench.plan.study import OPTION_NAMES, read_options, resolve
from kdbench.report import load, write_report
from kdbench.report.results import StudyResults
from kdbench.results import Folders, Store
from kdbench.runner.catalog import build_catalog
from kdbench.runner.plugins import load_plugins
from kdbench.runner.progress import progress
from kdbench.runner.signals import SIGNALS
from kdbench.runner.study_run import prepare_study


def run_study(path: Path | None, options: Mapping[str, Any], *, quiet: bool) -> pd.DataFrame:
    """See `kdbench.run`."""
    for name in options:
        if name not in OPTION_NAMES:
            raise unknown_name("option", name, OPTION_NAMES, f"there are {', '.join(OPTION_NAMES)}")
    study_options, run, own_recipes = read_options(options, path)
    if run.plugins:
        own_recipes = {**load_plugins(run.plugins), **own_recipes}
    console = Console(file=io.StringIO()) if quiet else Console(force_jupyter=False)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    prepared = prepare_study(resolve(study_options, build_catalog, own_recipes), run, say=say)
    say(prepared.summary)
    with SIGNALS.listening(), SIGNALS.orderly(), progress(console, prepared.jobs) as display:
        prepared.train(display, SIGNALS.asked)
    records = prepared.store.records()
    own = prepared.own_records(records)
    write_report(load(Folders([prepared.store]), own, run.baseline, run.select), prepared.store.root)
    return StudyResults(own, rule=run.select).accuracy


def load_table(folder: Path) -> pd.DataFrame:
    """See `kdbench.load_results`."""
    records = Store(folder, quarantine=False).records()
    if not records:
        raise UserError(f"{folder} holds no records")
    return StudyResults(records).accuracy
