"""docs/generate.py writes a page for each method."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from kdbench.core.trial import Pair
from tests.methods.expectations import METHODS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("site") / "methods"
    assert generate.main(["--out", str(folder)]) == 0
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def test_every_method_has_a_page_and_a_row(pages: dict[str, str]) -> None:
    assert pages.keys() == {"README.md", *(f"{name}.md" for name in METHODS)}
    for name in METHODS:
        assert f"\n| [{name}]({name}.md) |" in pages["README.md"]
    for page in pages.values():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
            assert link.startswith("https://") or link in pages


def test_costs_by_hand(pages: dict[str, str]) -> None:
    # Embeddings are 256 wide on both sides: two maps to 128 have 2 (256 · 128 + 128) parameters, a memory 50,000 · 128.
    assert "65,792 parameters and 48.83 MiB of buffers" in pages["crd.md"]
    assert "65,792 parameters and 8.00 MiB of buffers" in pages["rrd.md"]  # a queue of 16,384 rows and its pointer
    # 3x3 convolutions 256 → 256 → 128 → 128 with biases and batch norm; the same and their mirror image without.
    encoder, decoder, norm = 590_080 + 295_040 + 147_584, 147_584 + 295_168 + 590_080, 2 * (256 + 128 + 128)
    assert f"{2 * encoder + decoder + norm:,} parameters" in pages["ft.md"]


def test_settings_ranges_and_unsupported_pairs(pages: dict[str, str]) -> None:
    assert "| `at_weight` | float | `1000.0` |" in pages["at.md"]
    assert re.search(r"\| `icd_weight` \| float \| `1.0` \| [\d.]+ to [\d.]+ \|", pages["icd.md"])
    assert "- `wrn_40_2:wrn_40_1`: it needs equal channels" in pages["fsp.md"]
    assert "It supports all of them." in pages["kd.md"]


def test_a_method_that_does_not_support_the_pair_has_no_cost(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PAIR", Pair(("wrn_40_2",), "wrn_40_1"))
    assert generate.cost("fsp")["mib"] == "n/a"
    assert "it needs equal channels" in generate.cost("fsp")["cost"]


def test_fields_keep_their_lines(generate: Any) -> None:
    text = "Line.\n\nPaper:    P:\n          Q.\nLoss:     a\n            b\n\n          c\nDefaults: d\nDiffers:  e\n"
    expected = {"Paper": "P:\nQ.", "Loss": "a\n  b\n\nc", "Defaults": "d", "Differs": "e"}
    assert generate.docstring_fields("here", text) == expected


@pytest.mark.parametrize("field", ["Paper", "Loss", "Defaults", "Differs"])
def test_a_missing_field_is_an_error(
    field: str, generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules["kdbench.methods.at"]
    assert module.__doc__
    monkeypatch.setattr(module, "__doc__", module.__doc__.replace(f"{field}:", "Other:"))
    assert generate.main(["--out", str(tmp_path / "site")]) == 2
    assert f"methods/at.py: its docstring lacks the field {field!r}" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
