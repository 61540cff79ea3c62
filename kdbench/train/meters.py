"""Time of interleaved regions on a device, without stopping it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Adds up the seconds that its regions take on the device; on CUDA by events, read once by `mean`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - started)

    def mean(self) -> float:
        """Seconds of a region since the last call, 0 without any; waits for the device."""
        seconds = self._collect()
        return sum(seconds) / len(seconds) if seconds else 0.0

    def total(self) -> float:
        """Seconds of all regions since the last call; waits for the device."""
        return sum(self._collect())

    def _collect(self) -> list[float]:
        if self._cuda:
            torch.cuda.synchronize()
            self._seconds = [begin.elapsed_time(end) / 1000 for begin, end in self._events]
        seconds, self._seconds, self._events = self._seconds, [], []
        return seconds
