"""Coverage-guided fuzzing of method expressions, where atheris can be had (`pip install atheris`).

python -m tests.faults.atheris_parser -runs=200000
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports():
    from kdbench.plan.expressions import parse

from kdbench.core.errors import UserError
from kdbench.runner.catalog import build_catalog

CATALOG = build_catalog(None)


def check(data: bytes) -> None:
    text = atheris.FuzzedDataProvider(data).ConsumeUnicode(80)
    try:
        found = parse(text, CATALOG)
    except UserError:
        return
    for method in found:
        assert method in parse(method.expression, CATALOG)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
