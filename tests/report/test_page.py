"""report.html: one file, offline, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.report import write_report
from kdbench.report.commands import command
from kdbench.report.results import StudyResults
from tests.report.factory import PART, study, trained
from tests.report.test_comparison import PAIRS, known

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<script>alert(1)</script> & </script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    kinds = {"kd": "logits", "crd": "contrastive", "icd": "contrastive"}
    records = [
        replace(r, trial=replace(r.trial, kind=kinds.get(r.trial.method, "")), metrics={"kl": 0.1}) for r in known()
    ]
    records += [trained("fsp", None, pair=PAIRS[0], status="n/a", reason="maps of other sizes")]
    records += [trained("rkd", None, 0, pair=PAIRS[0], status="failed", reason=HOSTILE)]
    records += [trained("sp", None, 1, pair=PAIRS[0], status="diverged", reason="the loss was not finite")]
    write_report(StudyResults(records), out)
    return out / "report.html"


def test_it_needs_no_other_host_and_no_script_from_outside(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"""(src|href)=["']?(?!data:)[a-z/]""", text)
    assert "http" not in re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("</script>") == 3  # the theme, the data and the program
    for words in ("n/a", "failed", "diverged", "maps of other sizes", "the loss was not finite"):
        assert words in text


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is absent (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def test_in_a_browser(page: Path, browser: Any) -> None:
    said: list[str] = []
    requested: list[str] = []
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390  # a telephone scrolls tables, not the page

    table = tab.locator("table.sortable").first
    names = table.locator("tbody tr:visible th")
    before = names.all_inner_texts()
    assert before[:3] == ["Teacher", "Student", "kd"]
    head = table.locator("thead th").nth(1)
    values = "cells => cells.map(cell => cell.dataset.value).filter(text => text !== '').map(Number)"
    for way, order in (("descending", True), ("ascending", False)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == way
        numbers = table.locator("tbody tr td:nth-child(2)").evaluate_all(values)
        assert len(numbers) >= 4
        assert numbers == sorted(numbers, reverse=order)

    own = tab.get_by_label("filter rows of Top-1 accuracy (%)")
    own.fill("ICD")
    assert names.all_inner_texts() == ["icd"]
    own.fill("icd, kd")  # of which no row has both
    assert names.all_inner_texts() == []
    own.fill("")
    assert sorted(names.all_inner_texts()) == sorted(before)

    heads = table.locator("thead th:visible")
    tab.locator("#methods").fill("kd icd")
    tab.locator("#pairs").fill("vgg8")
    tab.keyboard.press("Enter")  # which sends nothing anywhere
    assert set(names.all_inner_texts()) == {"kd", "icd", "rkd"}
    for written in ("vgg13:vgg8", "vgg13 → vgg8, nosuch"):
        tab.locator("#pairs").fill(written)
        assert [text.split(" →")[0] for text in heads.all_inner_texts()] == ["method", "vgg13"]
    tab.locator("#methods").fill("crd, vanilla")
    assert set(names.all_inner_texts()) == {"crd", "Student"}
    tab.locator("#methods").fill("kd icd")
    tab.locator("#pairs").fill("vgg8")
    assert [text.split(" →")[0] for text in heads.all_inner_texts()] == ["method", "vgg13", "ResNet50"]
    rules = tab.locator("table.sortable", has_text="pair: method").first.locator("tbody tr:visible th")
    assert set(rules.all_inner_texts()) == {
        f"{teacher} → vgg8: {method}" for teacher in ("vgg13", "ResNet50") for method in ("kd", "icd")
    }
    of_pairs = tab.locator("h3:visible", has_text="Fidelity and calibration, ")
    assert {text.split(", ")[-1] for text in of_pairs.all_inner_texts()} == {"vgg13 → vgg8", "ResNet50 → vgg8"}
    nothing = tab.get_by_text("Nothing here matches the filter.").locator("visible=true")
    assert nothing.count() == 0
    tab.locator("#methods").fill("no such method")
    assert nothing.count() > 0
    for name in ("#methods", "#pairs"):
        tab.locator(name).fill("")
    assert nothing.count() == 0
    assert of_pairs.count() == len(PAIRS)
    assert tab.locator("#kind option").all_inner_texts() == ["all kinds", "contrastive", "logits"]
    tab.locator("#kind").select_option("contrastive")
    assert set(names.all_inner_texts()) == {"crd", "icd"}
    assert {text.split(": ")[1] for text in rules.all_inner_texts()} == {"crd", "icd"}
    recipe = tab.locator("table.sortable", has_text="weight decay").locator("tbody tr:visible")
    assert recipe.count() == 9  # which is of no kind, and stays
    tab.locator("#kind").select_option("all kinds")
    assert sorted(names.all_inner_texts()) == sorted(before)
    assert heads.count() == 1 + len(PAIRS)

    tab.locator("button[data-details]", has_text="±").first.click()
    details = tab.locator("dialog[open]")
    assert "python bench.py --methods" in details.inner_text()
    assert details.locator("tbody tr").count() == 5  # a line a seed
    details.locator("form button").click()
    assert tab.locator("dialog[open]").count() == 0

    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.locator("#theme").click()
    assert tab.evaluate(ground) != light
    tab.reload()
    assert tab.evaluate(ground) != light  # the choice is kept
    tab.locator("#theme").click()
    assert tab.evaluate(ground) == light
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(ground) != light  # what the system says is no choice
    tab.locator("#theme").click()
    tab.reload()
    assert tab.evaluate(ground) == light
    assert said == []
    assert {url.split(":")[0] for url in requested} <= {"file", "data"}


def test_the_first_screen_has_the_answer_and_folds_the_rest_until_it_is_printed(page: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto(page.as_uri())
    answer = tab.locator("#summary .answer")
    assert answer.bounding_box()["y"] + answer.bounding_box()["height"] < 800
    assert answer.inner_text().startswith("Over 6 pairs: icd has the highest mean accuracy, 1.")
    more = tab.locator("#summary details li")
    assert more.count() >= 3
    assert more.locator("visible=true").count() == 0
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert more.locator("visible=true").count() == more.count()


def test_records_without_kinds_have_no_choice_of_kinds(tmp_path: Path) -> None:
    write_report(StudyResults(known()), tmp_path)
    assert '<select id="kind"' not in (tmp_path / "report.html").read_text("utf-8")


def test_a_cell_leads_to_its_own_trials_whatever_its_method_is_called(tmp_path: Path, browser: Any) -> None:
    records = [trained("kd", 70.0, pair=("a", "b|c")), trained("c|kd", 71.0, pair=("a", "b"))]
    write_report(StudyResults(records), tmp_path)
    tab = browser.new_page()
    tab.goto((tmp_path / "report.html").as_uri())
    for value, title in (
        ("70.00 (1)", "a → b|c, kd (cifar100, paper)"),
        ("71.00 (1)", "a → b, c|kd (cifar100, paper)"),
    ):
        tab.locator("button[data-details]", has_text=value).click()
        assert tab.locator("#details-title").inner_text() == title
        tab.keyboard.press("Escape")


def test_on_paper_nothing_is_cut_off(tmp_path: Path, browser: Any) -> None:
    methods = [f"method{number}" for number in range(24)]
    write_report(StudyResults(study(methods, PAIRS, seeds=2)), tmp_path)
    tab = browser.new_page(viewport={"width": 700, "height": 900})  # about a page of A4
    tab.emulate_media(media="print")
    tab.goto((tmp_path / "report.html").as_uri())
    overflow = "boxes => boxes.map(box => box.scrollWidth - box.clientWidth)"
    boxes = tab.locator(".scroll:visible")
    assert boxes.count() > 5
    assert max(boxes.evaluate_all(overflow)) <= 1
    assert tab.locator(".paper:visible").count() == 1  # wins, 25 columns


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_without_seeing_it(page: Path, browser: Any, scheme: str) -> None:
    """By axe's rules: names of fields and pictures, contrast, order of headings, what the keyboard reaches."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(page.as_uri())
    found = axe.Axe().run(tab).response["violations"]
    grave = [
        (each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_by_keyboard_in_print_and_with_charts_in_the_colors_of_the_page(page: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.goto(page.as_uri())
    head = tab.locator("table.sortable").first.locator("thead th").nth(1)
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    tab.locator("button[data-details]").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open]").count() == 1
    tab.keyboard.press("Escape")
    assert tab.locator("dialog[open]").count() == 0
    drawings = tab.locator("figure svg")
    assert drawings.count() == 4  # no epochs, so no curves
    assert {drawing.get_attribute("role") for drawing in drawings.all()} == {"img"}
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    color = "getComputedStyle(document.querySelector('figure svg')).fill"
    light = tab.evaluate(color)
    tab.locator("#theme").click()
    assert tab.evaluate(color) != light
    tab.emulate_media(media="print")
    dark = "document.documentElement.dataset.theme = 'dark', getComputedStyle(document.body).color"
    assert tab.evaluate(dark) == "rgb(0, 0, 0)"  # on paper, whatever the screen shows
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("delete document.documentElement.dataset.theme")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.locator("input[type=search]:visible").count() == 0
    assert tab.locator("#theme:visible").count() == 0


def test_the_command_that_trains_a_cell_again() -> None:
    record = trained("icd(alpha=0.1)+kd", seed=2, pair=PAIRS[0], data=PART)
    assert command(record) == (
        "python bench.py --methods 'icd(alpha=0.1)+kd' --pairs resnet56:resnet20 --seeds 2, --dataset cifar100 "
        "--recipe paper --epochs 240 --size 32 --precision fp32 --subset 1000 --device cpu --threads 2 --out again"
    )
    clipped = replace(record.trial, recipe=replace(record.trial.recipe, max_grad_norm=5.0))
    on_gpu = replace(record, trial=clipped, environment={"device": "cuda", "threads": 2})
    assert command(on_gpu).endswith("--subset 1000 --max-grad-norm 5 --out again")
    assert command(replace(on_gpu, environment={"compiled": True})).endswith("--max-grad-norm 5 --compile --out again")
    hostile = replace(record, trial=replace(record.trial, method="kd; rm -rf ~ $(id)"))
    assert "--methods 'kd; rm -rf ~ $(id)' " in command(hostile)
