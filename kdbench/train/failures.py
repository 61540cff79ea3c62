"""How a student's training fails, and what its record says of that."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from kdbench.core.record import Status
from kdbench.train.device import is_out_of_memory


class Diverged(Exception):
    """The loss, the gradient or the weights stopped being finite; the message says where."""


class NonfiniteGradient(Diverged):
    """The gradient stopped being finite while every term of the loss was; `nonfinite_terms` finds out which did it."""

    def __init__(self, epoch: int, step: int, terms: list[str]) -> None:
        self.epoch, self.step, self.terms = epoch, step, terms  # the step from 0
        super().__init__(self.message(f"while every term was: {', '.join(terms)}"))

    def message(self, why: str) -> str:
        return f"the gradient was not finite from {epoch_name(self.epoch)}, step {self.step + 1} on ({why})"


def epoch_name(epoch: int) -> str:
    """`epoch 3`, or `pretraining epoch 3` for -3."""
    return f"epoch {epoch}" if epoch >= 0 else f"pretraining epoch {-epoch}"


def status_and_reason(error: Exception, when: str) -> tuple[Status, str]:
    """Status and one-line reason of a failure; an error says where in the method's file it arose.

    Raises the error if memory ended: that is not one student's failure.
    """
    if is_out_of_memory(error):
        raise error
    if isinstance(error, Diverged):
        return "diverged", str(error)
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not _is_ours_or_torchs(Path(frame.filename))]
    frame = (outside or frames)[-1]
    message = (str(error).splitlines() or [""])[0]
    return "failed", f"{when}: {type(error).__name__}: {message} ({Path(frame.filename).name}, line {frame.lineno})"


def _is_ours_or_torchs(path: Path) -> bool:
    package = Path(__file__).parents[1]
    ours = package in path.parents and package / "methods" not in path.parents
    return ours or Path(torch.__file__).parent in path.parents
