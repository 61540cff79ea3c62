"""Ctrl-C and SIGTERM: a polite end where the work can be kept, an immediate one on the second try."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WORDS = b"\nkdbench: finishing this step and keeping what is under way; once more ends at once\n"


class Signals:
    """What the user or the system asked for."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._patient = False

    def listen(self) -> None:
        self.number, self._patient = None, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        first, self.number = self.number is None, number
        if not (first and self._patient):
            raise KeyboardInterrupt
        os.write(2, _WORDS)  # a signal may come in the midst of a print

    @contextmanager
    def patient(self) -> Iterator[None]:
        """While this lasts the first signal only makes `asked` true."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def asked(self) -> bool:
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit code of a program that was ended so."""
        return 128 + (self.number or signal.SIGINT)


SIGNALS = Signals()
"""Those of this process."""
