"""The command that trains a trial again."""

from __future__ import annotations

import re
import shlex

from kdbench.core.trial import Trial

_NOTES = {"--subset": "n", "--val-fraction": "val"}


def command(trial: Trial) -> str:
    """For a shell. Paths are not recorded: PATH and FILE stand for those of own images and teacher files."""
    base, classes, named = _selection(trial.data.label)
    kind, colon, _ = base.partition(":")
    recipe = trial.recipe
    teacher = trial.teacher or trial.arch
    words = ["--methods", trial.method, "--pairs", f"{teacher}:{trial.arch}", "--seeds", f"{trial.seed},"]
    words += ["--dataset", f"{kind}:PATH" if colon else base, "--recipe", recipe.name]
    words += ["--epochs", str(recipe.epochs), "--size", str(recipe.size), "--precision", trial.precision]
    words += ["--classes", classes] if classes else []
    words += [word for option, key in _NOTES.items() if key in named for word in (option, named[key])]
    if rate := re.search(r",lr=([^,]+)", recipe.label):
        words += ["--lr", rate[1]]
    words += ["--max-grad-norm", f"{recipe.max_grad_norm:g}"] if recipe.max_grad_norm is not None else []
    if any(source.sha256 for source in trial.teachers):
        words += ["--teacher", "FILE"] if len(trial.teachers) == 1 else ["--teacher-dir", "DIR"]
    return "python bench.py " + shlex.join(words)


def _selection(label: str) -> tuple[str, str, dict[str, str]]:
    """`cifar10[0-4,n=1000]` -> `cifar10`, `0-4`, {`n`: `1000`}."""
    base, _, notes = label.removesuffix("]").partition("[")
    parts = [part for part in notes.split(",") if part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return base, ",".join(part for part in parts if "=" not in part), named
