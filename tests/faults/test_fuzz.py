"""Readers of what people type and of what others made: whatever comes, one sentence or a result, never anything else.

The short forms run always, the long ones with `-m slow`.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.core.data import DataRequest
from kdbench.core.errors import UserError
from kdbench.core.record import Record
from kdbench.data.sources import prepare
from kdbench.plan import pairs
from kdbench.plan.expressions import parse
from kdbench.plan.parsing import parse_classes, parse_interval, parse_seeds
from kdbench.report import write_report
from kdbench.report.results import StudyResults
from kdbench.results import Store
from kdbench.results.serialize import dumps_checksummed, load_checksummed
from kdbench.runner.catalog import build_catalog
from tests.data.build import folder_tree, rows, write
from tests.report.factory import study
from tests.results.test_store import DONE, ENVIRONMENT, TRIAL


def forms(short: int, long: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cases", [short, pytest.param(long, marks=pytest.mark.slow)])


def fuzz(check: Callable[[Any], None], strategy: st.SearchStrategy[Any], cases: int) -> None:
    """Run `check` on so many cases, the same ones every time."""
    how = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    how(given(strategy)(check))()


# What people type ----------------------------------------------------------------------------------------------------

CATALOG = build_catalog(None)
NAMES = [*CATALOG.methods, "all", "kd_weight", "kd_temperature", "ce_weight", "alpha", "nce_k"]
PIECES = [
    *NAMES,
    *"(),=+ .-_",
    "+kd",
    "1",
    "0.5",
    "1e3",
    "1e999",
    "-1",
    "nan",
    "inf",
    "true",
    "٣",
    "9" * 5000,
    "\0",
    "é",
]
EXPRESSIONS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.text("kdicrd(),=+01. ", max_size=30),
)


def _sentence(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error).replace("\\n", "")


@forms(2_000, 100_000)
def test_method_expressions(cases: int) -> None:
    def check(text: str) -> None:
        try:
            found = parse(text, CATALOG)
        except UserError as error:
            _sentence(error)
            return
        for method in found:  # what was understood is understood again, and can be recorded
            again = {each.expression: each for each in parse(method.expression, CATALOG)}
            assert again[method.expression] == method
            json.dumps(dict(method.settings), allow_nan=False)

    fuzz(check, EXPRESSIONS, cases)


@forms(500, 10_000)
def test_other_words(cases: int) -> None:
    words = st.one_of(st.text(max_size=20), st.text("0123456789,-:.min resnet8x4ll", max_size=25))

    def check(text: str) -> None:
        for parser in (parse_seeds, parse_classes, parse_interval, lambda word: pairs.parse(word, "cifar100")):
            try:
                parser(text)
            except UserError as error:
                _sentence(error)

    fuzz(check, words, cases)


# Records -------------------------------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(
            ["<script>alert(1)</script>", "$\\frac{", "../../etc/passwd", "=1+1", "a|b", "\x1b[31m", "done", "n/a"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)


def _change(content: Any, path: list[int], value: Any) -> Any:
    """`content` with what lies at a path, given by positions, replaced."""
    if not path or not content or not isinstance(content, dict | list):
        return value
    keys: Iterable[Any] = content if isinstance(content, dict) else range(len(content))
    key = list(keys)[path[0] % len(content)]
    copy: Any = content.copy()
    copy[key] = _change(content[key], path[1:], value)
    return copy


PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def _stored(content: dict[str, Any]) -> list[Record]:
    """What the store reads from a folder with this record, sealed as by somebody who knows how."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.runs.mkdir()
        (store.runs / "hostile.json").write_bytes(dumps_checksummed(content))
        return store.records()


def _content() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder)).save(DONE, ENVIRONMENT)
        return load_checksummed(Path(folder) / "runs" / f"{TRIAL.id}.json")


@pytest.mark.filterwarnings("ignore")
@forms(1_000, 10_000)
def test_records_that_somebody_made(cases: int) -> None:
    content = _content()
    accepted = 0

    def check(change: tuple[list[int], Any]) -> None:
        nonlocal accepted
        try:
            changed = _change(content, *change)
            dumps_checksummed(changed)
        except UnicodeEncodeError:  # lone surrogates cannot even be written
            return
        for record in _stored(changed):
            accepted += 1
            assert record.trial.id
            assert dumps_checksummed({"top1": record.top1, "extra_info": dict(record.extra_info)})

    fuzz(check, st.tuples(PLACES, VALUES), cases)
    assert 0 < accepted < cases


@forms(500, 10_000)
def test_bytes_in_place_of_records(cases: int) -> None:
    good = dumps_checksummed(_content())

    def check(change: tuple[int, bytes]) -> None:
        place, data = change
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            store.runs.mkdir()
            content = good[: place % len(good)] + data + good[place % len(good) + len(data) :]
            (store.runs / "hostile.json").write_bytes(content)
            assert bool(store.records()) == (content == good)

    fuzz(check, st.tuples(st.integers(0), st.binary(max_size=30)), cases)


# Images --------------------------------------------------------------------------------------------------------------


def _mutate(path: Path, seed: int) -> None:
    """Flip, cut, repeat or overwrite a part of a file."""
    chance = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(content)) if content else 0
        part = chance.randint(1, 64)
        match chance.randrange(4):
            case 0:
                content[start : start + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[start : start + part]
            case 2:
                content[start:start] = content[start : start + part]
            case _:
                content[start : start + part] = chance.randbytes(part)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["parquet", "folder"])
@forms(150, 10_000)
def test_images_that_somebody_made(kind: str, cases: int, tmp_path: Path) -> None:
    if kind == "parquet":
        tables = {f"{name}.parquet": rows([0, 1] * 4) for name in ("train", "test")}
        source = write(tmp_path / "set", tables)
        target = tmp_path / "set" / "train.parquet"
    else:
        source = folder_tree(tmp_path / "set", per_class=1)
        target = tmp_path / "set" / "train" / "cat" / "0.png"
    good = target.read_bytes()

    def check(seed: int) -> None:
        target.write_bytes(good)
        _mutate(target, seed)
        with tempfile.TemporaryDirectory() as cache:
            try:
                images = prepare(DataRequest(source, 8), Path(cache))
            except UserError as error:
                _sentence(error)
            else:
                assert images.train.images.shape[1:] == (8, 8, 3)

    fuzz(check, st.integers(0), cases)


# The report ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@forms(4, 100)
def test_reports_of_records_that_somebody_made(cases: int) -> None:
    content = _content()

    def check(changes: list[tuple[list[int], Any]]) -> None:
        records: list[Record] = study(["kd", "icd"], [("resnet56", "resnet20")], seeds=2)
        for change in changes:
            try:
                records += _stored(_change(content, *change))
            except UnicodeEncodeError:
                continue
        with tempfile.TemporaryDirectory() as folder:
            write_report(StudyResults(records), Path(folder))
            page = (Path(folder) / "report.html").read_text("utf-8")
            assert "<script>alert" not in page
            assert page.count("</script>") == 3

    fuzz(check, st.lists(st.tuples(PLACES, VALUES), min_size=20, max_size=40), cases)
