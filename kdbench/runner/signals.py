"""Ctrl-C and SIGTERM: an orderly stop while training, an immediate one on the second signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HANDLED = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nkdbench: finishing this step and saving checkpoints; press again to stop at once\n"


class Signals:
    """Whether, and by which signal, the process was asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._orderly = False

    def listen(self) -> None:
        """Handle signals from now on. Does nothing in a thread, where Python cannot."""
        self.number, self._orderly = None, False
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                signal.signal(number, self._handle)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals within this context, and restore the handlers that were there."""
        before = {number: signal.getsignal(number) for number in _HANDLED}
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

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
