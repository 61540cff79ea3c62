"""Ctrl-C and SIGTERM: an orderly stop while training, an immediate one on the second signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NOTICE = b"\nkdbench: finishing this step and saving checkpoints; press again to stop at once\n"


class Signals:
    """Whether, and by which signal, the process was asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._orderly = False

    def listen(self) -> None:
        self.number, self._orderly = None, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        if not (first and self._orderly):
            raise KeyboardInterrupt
        os.write(2, _NOTICE)  # print is not reentrant

    @contextmanager
    def orderly(self) -> Iterator[None]:
        """Within this context the first signal only makes `asked` true."""
        self._orderly = True
        try:
            yield
        finally:
            self._orderly = False

    def asked(self) -> bool:
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit code of a process that was ended by the signal."""
        return 128 + (self.number or signal.SIGINT)


SIGNALS = Signals()
"""The signals of this process."""
