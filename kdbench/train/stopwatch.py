"""Time of interleaved regions on a device, without stopping it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds that its regions take on the device; on CUDA by events, read once by `total`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
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
            self._seconds += time.perf_counter() - started

    def total(self) -> float:
        """Seconds since the last call; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            self._seconds = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        seconds, self._seconds, self._events = self._seconds, 0.0, []
        return seconds
