"""What is measured while a student trains: time on the device, and the terms of its loss."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NEVER = 2**62


class Timer:
    """Seconds that regions of code take on a device, without stopping it; on CUDA by events that are read once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - started)

    def discard(self) -> None:
        """Forget the regions so far."""
        self._seconds, self._events = [], []

    def mean(self) -> float:
        """Mean seconds of a region since the last call, 0 without any; waits for the device."""
        seconds = self._collect()
        return sum(seconds) / len(seconds) if seconds else 0.0

    def total(self) -> float:
        """Seconds of all regions since the last call; waits for the device."""
        return sum(self._collect())

    def _collect(self) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self._seconds = [start.elapsed_time(end) / 1000 for start, end in self._events]
        seconds, self._seconds, self._events = self._seconds, [], []
        return seconds


class EpochTimer(Timer):
    """A student's seconds of each epoch, which may have begun in an earlier process; not every step need be timed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._latest = 0.0  # mean seconds of the steps that were timed last
        self.begin_epoch()

    def begin_epoch(self, seconds_before: float = 0.0, steps_before: int = 0) -> None:
        """Begin an epoch, of which so much has passed."""
        self._seconds_before, self._steps_before = seconds_before, steps_before
        if steps_before:
            self._latest = seconds_before / steps_before

    def seconds(self, steps: int) -> float:
        """Of the epoch's first `steps` steps: the mean of the timed ones times their number. Timing starts anew."""
        self._latest = self.mean() or self._latest  # few of the replayed steps are timed
        self._seconds_before += self._latest * (steps - self._steps_before)
        self._steps_before = steps
        return self._seconds_before


class LossMeter:
    """Sums the terms of the loss over an epoch, and notes the first step in which each of them was not finite.

    The norm of the gradient is watched beside the terms. Nothing is read back from the device before `means`.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []
        self._sums = torch.zeros((), device=device)
        self._first_nonfinite = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)  # on the device, where CUDA graphs can read it

    def reset(self) -> None:
        """Begin an epoch; in place, for the sake of recorded steps."""
        self._sums.zero_()
        self._first_nonfinite.fill_(_NEVER)
        self._step.zero_()

    def update(self, terms: Mapping[str, Tensor], gradient_norm: Tensor) -> None:
        values = torch.stack([*terms.values(), gradient_norm]).detach().double()  # [terms + 1]
        if not self.names:
            self.names = list(terms)
            self._sums = torch.zeros_like(values)
            self._first_nonfinite = torch.full_like(values, _NEVER)
        self._sums += values
        first = torch.where(values.isfinite(), _NEVER, self._step)
        self._first_nonfinite.copy_(torch.minimum(self._first_nonfinite, first))
        self._step += 1

    def means(self, steps: int) -> dict[str, float]:
        """Mean of each term over the epoch's steps."""
        return dict(zip(self.names, (self._sums[:-1] / steps).tolist(), strict=True))

    def first_nonfinite(self) -> tuple[int, list[str]] | None:
        """The first step (from 0) that was not finite, and the terms; none of them if only the gradient was not."""
        *terms, gradient = self._first_nonfinite.tolist()
        first = min(*terms, gradient)
        if first >= _NEVER:
            return None
        return int(first), [name for name, step in zip(self.names, terms, strict=True) if step == first]

    def state(self) -> dict[str, Any]:
        tensors = {"sums": self._sums, "first_nonfinite": self._first_nonfinite, "step": self._step}
        return {"names": self.names, **{name: tensor.cpu() for name, tensor in tensors.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        device = self._step.device
        self.names = list(state["names"])
        self._sums, self._first_nonfinite = state["sums"].to(device), state["first_nonfinite"].to(device)
        self._step = state["step"].to(device)
