"""Errors that end a command with one sentence, and text that is safe to print in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one clear sentence; the command prints it and exits with code 2."""


class DeviceLost(UserError):
    """A device computes no longer in this process; what was recorded is intact."""


class Interrupted(KeyboardInterrupt):
    """An orderly stop that the user asked for, raised after the work in progress was saved."""


def unknown_name(kind: str, name: str, known: Iterable[str], where: str) -> UserError:
    """The error for a name that is not among the `known` ones: suggests the closest, then says `where` to see all."""
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    closest = difflib.get_close_matches(name.lower(), by_lowercase, n=1)
    hint = f"did you mean {by_lowercase[closest[0]]!r}? " if closest else ""
    return UserError(f"unknown {kind} {name!r}: {hint}{where}")


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # C0, DEL, C1; surrogates, which UTF-8 cannot encode


def plain(text: str) -> str:
    """Untrusted text with control characters and surrogates replaced by spaces, safe for terminals and files."""
    return _CONTROL.sub(" ", text)
