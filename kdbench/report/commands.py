"""The command that trains a trial again."""

from __future__ import annotations

import shlex

from kdbench.core.data import format_ranges
from kdbench.core.record import Record
from kdbench.plan import recipes


def command(record: Record) -> str:
    """For a shell, with what changes the last bits. PATH and FILE stand for paths of images and teacher files, since
    reports are passed on; the folder is a new one, since in its own there is nothing left to train.
    """
    trial, machine = record.trial, record.environment
    recipe, data, request = trial.recipe, trial.data, trial.data.request
    kind, colon, _ = (request.source if request else data.label).partition(":")
    teacher = trial.teacher or trial.arch
    words = ["--methods", trial.method, "--pairs", f"{teacher}:{trial.arch}", "--seeds", f"{trial.seed},"]
    words += ["--dataset", f"{kind}:PATH" if colon else kind, "--recipe", recipe.name]
    words += ["--epochs", str(recipe.epochs), "--size", str(recipe.size), "--precision", trial.precision]
    if request:
        words += ["--classes", format_ranges(request.classes)] if request.classes else []
        words += ["--subset", str(request.subset)] if request.subset is not None else []
        words += ["--val-fraction", f"{request.val_fraction:g}"] if request.val_fraction else []
        words += ["--test-fraction", f"{request.test_fraction:g}"] if request.test_fraction else []
        words += ["--label-column", request.label_column] if request.label_column else []
    if recipe.name in recipes.names() and recipe.lr != recipes.recipe(recipe.name).lr:
        words += ["--lr", f"{recipe.lr:g}"]
    words += ["--max-grad-norm", f"{recipe.max_grad_norm:g}"] if recipe.max_grad_norm is not None else []
    if any(source.sha256 for source in trial.teachers):
        words += ["--teacher", "FILE"] if len(trial.teachers) == 1 else ["--teacher-dir", "DIR"]
    if machine.get("device") == "cpu" and "threads" in machine:
        words += ["--device", "cpu", "--threads", str(machine["threads"])]
    words += ["--compile"] if "compiled" in machine else []
    words += ["--out", "again"]
    return "python bench.py " + shlex.join(words)
