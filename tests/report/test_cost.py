"""The cost table."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.core.record import Outcome, Record
from kdbench.core.trial import VANILLA, Value
from kdbench.report.renderers import markdown
from kdbench.report.results import StudyResults
from kdbench.report.scores import rows_of
from kdbench.report.tables.cost import COLUMNS, cost, costs
from kdbench.results import Store
from kdbench.results.serialize import dumps_checksummed, load_checksummed
from tests.report.factory import printed, texts, trained

OTHER: dict[str, Value] = {"torch": "2.11.0", "device": "cuda:0", "threads": 2}


def rows(records: list[Record]) -> dict[str, dict[str, object]]:
    return {row["method"]: row for row in rows_of(costs(StudyResults(records)), "cifar100", "paper")}


def cells(records: list[Record]) -> dict[str, str]:
    (table,) = cost(StudyResults(records)).tables
    return dict(texts(table)["resnet56 → resnet20"])


def test_seconds_are_medians_over_seeds_beside_the_plain_student() -> None:
    vanilla = trained(VANILLA, own=1.0)  # and 1.0 s shared
    mine = [trained("crd", seed=seed, own=own) for seed, own in enumerate((2.0, 3.0, 9.0))]
    found = rows([vanilla, *mine])
    assert found["crd"]["n"] == 3
    assert found["crd"]["seconds_per_epoch"] == 4.0
    assert found["crd"]["times_vanilla"] == 2.0
    assert found["crd"]["images_per_second"] == 50000 / 4
    assert (cells([vanilla, *mine])["crd"], cells([vanilla, *mine])["Student"]) == ("4 s (2.00×)", "2 s")


def test_devices_and_precisions_are_never_averaged() -> None:
    old = trained("kd", seed=0, own=100.0, environment=OTHER)
    new = trained("kd", seed=1, own=2.0, finished="2026-02-01T00:00:00Z")
    found = rows([old, new, trained(VANILLA, environment=OTHER)])
    assert found["kd"]["n"] == 1
    assert found["kd"]["seconds_per_epoch"] == 3.0
    assert found["kd"]["times_vanilla"] is None  # the plain student was timed elsewhere
    assert cells([old, new, trained(VANILLA, environment=OTHER)])["kd"] == "3 s"


def test_what_the_method_holds_is_shown_where_it_was_recorded() -> None:
    held: dict[str, Value] = {"extra_parameters": 10, "extra_mib": 48.5, "peak_mib": 900.0, "cohort_size": 4}
    found = rows([trained("crd", cost=held), trained("kd")])
    assert {name: found["crd"][name] for name in held} == held
    assert found["kd"]["extra_mib"] is None


def test_trials_that_were_not_finished_cost_nothing_known() -> None:
    assert rows([trained("kd", status="failed", reason="x"), trained("fsp", status="n/a", reason="x")]) == {}
    assert list(costs(StudyResults([])).columns) == list(COLUMNS)


def test_documents_show_every_cell_and_say_what_it_is() -> None:
    sheet = cost(StudyResults([trained(VANILLA), trained("kd", own=2.5)]))
    document, terminal = markdown.document(sheet), printed(sheet)
    assert "| kd | 3.5 s (1.40×) |" in document
    assert "| Student | 2.5 s |" in document
    assert sheet.notes
    assert all(note in document for note in sheet.notes)
    assert "Cost of a training epoch" in terminal
    assert "3.5 s (1.40×)" in terminal
    assert cost(StudyResults([])).tables == []


@pytest.mark.parametrize("known", [True, False])
def test_records_from_before_costs_were_kept_are_read(tmp_path: Path, known: bool) -> None:
    store = Store(tmp_path)
    store.require_writable()
    kept = store.save(Outcome(trained("kd").trial, "done", cost={"extra_mib": 1.5}), {})
    path = store.runs / f"{kept.trial.id}.json"
    if not known:
        content = load_checksummed(path)
        del content["cost"]
        path.write_bytes(dumps_checksummed(content))
    assert [record.cost for record in store.records()] == [{"extra_mib": 1.5} if known else {}]


def test_times_of_compiled_networks_are_not_compared_in_silence() -> None:
    compiled = trained("kd", own=2.5, environment={"torch": "2.11.0", "device": "cpu", "threads": 2, "compiled": True})
    words = "Cost: mixes compiled networks and others; their times cannot be compared."
    assert words in cost(StudyResults([trained(VANILLA), compiled])).notes
    assert words not in cost(StudyResults([trained(VANILLA), trained("kd", own=2.5)])).notes


def test_times_that_cannot_be_are_named() -> None:
    """As of a study beside which something else ran while its plain students were trained."""
    notes = cost(StudyResults([trained(VANILLA), trained("kd", own=0.5)])).notes
    (disturbed,) = [note for note in notes if "disturbed" in note]
    assert "kd (resnet56 → resnet20)" in disturbed
    usual = cost(StudyResults([trained(VANILLA), trained("kd", own=1.5)])).notes
    assert not any("disturbed" in note for note in usual)
