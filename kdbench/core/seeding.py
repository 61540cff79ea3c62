"""Seeds of all random streams."""

from __future__ import annotations

import hashlib


def derive_seed(*key: object) -> int:
    """A 63-bit seed from the text of a key's parts, equal on every machine (SHA-256).

    Every random stream is seeded with the key of what it is for, such as ("weights", architecture, seed), so that it
    depends on nothing else: not on other streams, the order of calls or the device.
    """
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
