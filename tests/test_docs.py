"""The pages of docs/methods/ say what the code says."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kdbench.core.trial import Pair
from kdbench.distill import registry

ROOT = Path(__file__).resolve().parents[1]
METHODS = [name for name, info in registry.infos().items() if info.module == f"kdbench.methods.{name}"]


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generate: Any) -> dict[str, str]:
    found: dict[str, str] = generate.pages()
    return found


def test_the_pages_are_up_to_date(generate: Any, pages: dict[str, str]) -> None:
    committed = {path.name: path.read_text("utf-8") for path in generate.FOLDER.glob("*.md")}
    stale = sorted(name for name in pages.keys() | committed.keys() if pages.get(name) != committed.get(name))
    assert not stale, "run `python docs/generate.py`"


def test_every_method_has_a_page_and_a_row(pages: dict[str, str]) -> None:
    assert pages.keys() == {"README.md", *(f"{name}.md" for name in METHODS)}
    for name in METHODS:
        assert f"\n| [{name}]({name}.md) |" in pages["README.md"]


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_says_what_it_is(name: str) -> None:
    assert not [setting.name for setting in registry.infos()[name].settings if not setting.help]


def test_relative_links_resolve(generate: Any) -> None:
    for page in generate.FOLDER.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_costs_by_hand(pages: dict[str, str]) -> None:
    # Embeddings are 256 wide on both sides: two maps to 128 have 2 (256 · 128 + 128) parameters, a bank 50,000 · 128.
    assert "| parameters trained with it | 65,792 | 0.25 |" in pages["crd.md"]
    assert "| buffers | 12,800,002 | 48.83 |" in pages["crd.md"]
    assert "`memory_student` [50000, 128], `memory_teacher` [50000, 128]" in pages["crd.md"]
    # The teacher's embedding gets no gradient; the queue has 16,384 rows, and one number says where it begins.
    for row in ("trained with it | 32,896 | 0.13", "never trained | 32,896 | 0.13"):
        assert f"| parameters {row} |" in pages["rrd.md"]
    assert "| buffers | 2,097,153 | 8.00 |" in pages["rrd.md"]
    # 3x3 convolutions 256 → 256 → 128 → 128 with biases and batch norm; the same and their mirror image without.
    there, back, norm = 590_080 + 295_040 + 147_584, 147_584 + 295_168 + 590_080, 2 * (256 + 128 + 128)
    assert f"| parameters trained with it | {there + norm:,} |" in pages["ft.md"]
    assert f"| parameters trained in the first stage only | {there + back:,} |" in pages["ft.md"]


def test_what_is_read_and_served(pages: dict[str, str]) -> None:
    assert "the logits apart: map 2.\n" in pages["fitnet.md"]
    assert "the logits apart: pre_activations map 1, pre_activations map 2, pre_activations map 3.\n" in pages["ab.md"]
    assert "cannot serve 7 of them" in pages["fsp.md"]
    assert "- `wrn_40_2:wrn_40_1`: it needs equal channels" in pages["fsp.md"]
    assert "- `kd+kd` is refused: " in pages["kd.md"]


def test_a_method_that_cannot_serve_the_pair_has_no_cost(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PAIR", Pair("wrn_40_2", "wrn_40_1"))
    found = generate.cost("fsp")
    assert "it needs equal channels" in found.pop("cost")
    assert found.keys() < generate.cost("at").keys()
    assert set(found.values()) == {"n/a"}


def test_fields_keep_their_lines(generate: Any) -> None:
    text = "Line.\n\nPaper:    P:\n          Q.\nLoss:     a\n            b\n\n          c\nDefaults: d\nDiffers:  e\n"
    wanted = {"Paper": "P:\nQ.", "Loss": "a\n  b\n\nc", "Defaults": "d", "Differs": "e"}
    assert generate.parts("here", text) == wanted


def test_a_changed_default_makes_its_page_stale(
    generate: Any, pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = next(item for item in fields(registry.distiller("at").hyper_type) if item.name == "at_weight")
    monkeypatch.setattr(setting, "default", 5.0)
    changed = generate.pages()
    assert [name for name in pages if changed[name] != pages[name]] == ["at.md"]
    assert "| `at_weight` | float | `5.0` |" in changed["at.md"]


@pytest.mark.parametrize("field", ["Paper", "Loss", "Defaults", "Differs"])
def test_a_missing_field_is_an_error(
    field: str, generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules["kdbench.methods.at"]
    assert module.__doc__
    for text in (
        module.__doc__.replace(f"{field}:", "Other:"),
        re.sub(rf"(?m)^{field}:.*(\n .*)*", f"{field}:", module.__doc__),
    ):
        monkeypatch.setattr(module, "__doc__", text)
        assert generate.main([], tmp_path) == 2
        assert f"methods/at.py: its docstring lacks the field {field!r}" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_check_names_stale_pages_and_writing_mends_them(
    generate: Any,
    pages: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generate, "pages", lambda: pages)
    folder = tmp_path / "methods"
    assert generate.main(["--check"], folder) == 1
    assert generate.main([], folder) == 0
    assert generate.main(["--check"], folder) == 0
    assert f"{folder / 'at.md'}" in capsys.readouterr().out
    (folder / "at.md").write_text("old", "utf-8")
    (folder / "crd.md").unlink()
    (folder / "gone.md").write_text("a page of no method", "utf-8")
    assert generate.main(["--check"], folder) == 1
    named = re.findall(r"(\w+\.md) is (.*):", capsys.readouterr().out)
    assert named == [("at.md", "out of date"), ("crd.md", "out of date"), ("gone.md", "of no method")]
    assert (folder / "at.md").read_text("utf-8") == "old"
    assert generate.main([], folder) == 0
    assert {path.name: path.read_text("utf-8") for path in folder.iterdir()} == pages
