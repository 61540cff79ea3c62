"""Seeds of all random streams."""

from __future__ import annotations

import hashlib


def derive_seed(*key: object) -> int:
    """A 63-bit seed from any key, equal on every machine: SHA-256 of the parts' text.

    Every random stream of a study comes from here, so that it depends on what it is for and on nothing else.
    """
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
