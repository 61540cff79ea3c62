"""The long form of a sheet as CSV."""

from __future__ import annotations

import re

from kdbench.report.model import Sheet


def document(sheet: Sheet) -> str:
    """Numbers rounded, empty cells empty. Text that a spreadsheet would run gets a leading apostrophe."""
    safe = sheet.frame.round(sheet.decimals)
    for name in safe.columns[safe.dtypes == "object"]:
        safe[name] = [_safe(value) if isinstance(value, str) else value for value in safe[name]]
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _safe(text: str) -> str:
    return f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text
