"""Coverage-guided fuzzing of method expressions, where atheris can be had (`pip install atheris`).

python -m tests.faults.atheris_parser -runs=200000
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports():
    from kdbench.plan.expressions import parse

from kdbench.cli.common import catalogue_of
from kdbench.spec import UserError

CATALOGUE = catalogue_of(None)


def check(data: bytes) -> None:
    text = atheris.FuzzedDataProvider(data).ConsumeUnicode(80)
    try:
        found = parse(text, CATALOGUE)
    except UserError:
        return
    for method in found:
        assert method in parse(method.expression, CATALOGUE)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
