"""Errors that end a command with one sentence, and the words for names that are unknown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input from the user's side. The message is one clear sentence; the command exits with code 2."""


class Interrupted(KeyboardInterrupt):
    """An orderly end that somebody asked for: what was under way has been kept."""


def unknown_name(kind: str, word: str, known: Iterable[str], where: str) -> UserError:
    """The error for a word that is not on a list: with its nearest match and the place where the list is shown."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return UserError(f"unknown {kind} {word!r}: {hint}{where}")


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str) -> str:
    """A text of unknown origin without what a terminal would obey and a file could not hold."""
    return _CONTROL.sub(" ", text)
