"""Small things that people type: seeds, class ranges, intervals."""

from __future__ import annotations

import os
import re

from kdbench.core.errors import UserError
from kdbench.core.trial import CheckpointInterval


def parse_seeds(text: str) -> tuple[int, ...]:
    """`3` means seeds 0, 1, 2; `0,1,7` and `7,` mean the seeds named."""
    words = [word.strip() for word in text.split(",")]
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*,?\s*", text):
        raise UserError(f"--seeds {text!r} is neither a number of seeds (3) nor a list of seeds (0,1,7)")
    seeds = tuple(range(int(words[0]))) if len(words) == 1 else tuple(int(word) for word in words if word)
    if not seeds:
        raise UserError("--seeds 0 leaves nothing to train; for the seed 0 alone write --seeds 0,")
    if len(seeds) > 1000:
        raise UserError(f"--seeds {text!r} asks for {len(seeds)} seeds; for one seed write --seeds {words[0]},")
    return tuple(dict.fromkeys(seeds))


def parse_interval(text: str) -> CheckpointInterval | None:
    """`5` means epochs, `10min` or `1h` a time, `auto` what suits the device: None. Raises UserError."""
    if text.strip() == "auto":
        return None
    if re.fullmatch(r"\s*\d{1,6}\s*", text) and int(text):
        return CheckpointInterval(int(text))
    if seconds := _seconds(text):
        return CheckpointInterval(minutes=seconds / 60)
    raise UserError(
        f"--checkpoint-every {text!r} is neither a number of epochs (5) nor a time such as 10min or 1h, nor auto"
    )


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `50min` or `2h`. Raises UserError."""
    if seconds := _seconds(text):
        return seconds
    raise UserError(f"--time-limit {text!r} is not a time such as 50min, 2h or 90s")


def _seconds(text: str) -> float:
    """Of a time with its unit; 0 for what is none."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(s|m|min|minutes?|h)\s*", text)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2][0]] if match else 0.0


def parse_classes(text: str) -> tuple[int, ...]:
    """`0-9`, `3,5,7` or `0-4,8`: label numbers, from 0."""
    chosen: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", word)
        if not match:
            raise UserError(f"--classes {text!r}: {word.strip()!r} is neither a label number (3) nor a range (0-9)")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise UserError(f"--classes {text!r}: the range {word.strip()!r} runs backwards")
        chosen.update(range(first, last + 1))
    if len(chosen) < 2:
        raise UserError(f"--classes {text!r} leaves one class; a classifier needs at least two")
    return tuple(sorted(chosen))


def check_threads(threads: int | None) -> None:
    """Raise UserError if the machine has fewer processors."""
    processors = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= processors:
        raise UserError(f"--threads must be between 1 and {processors}, the processors of this machine: {threads}")
