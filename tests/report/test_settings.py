"""The settings of methods, and the recipe."""

from __future__ import annotations

from dataclasses import replace

from kdbench.core.record import Record
from kdbench.core.trial import VANILLA, Value
from kdbench.report.renderers import csv, markdown
from kdbench.report.results import StudyResults
from kdbench.report.tables.settings import settings
from tests.report.factory import PAPER, texts, trained

CRD: dict[str, Value] = {"ce_weight": 1.0, "kd_weight": 1.0, "crd_weight": 0.8, "nce_k": 4096, "nce_t": 0.07}
OTHER = ("vgg13", "vgg8")


def crd(**changes: Value) -> Record:
    changed = ("kd_weight", "nce_k", *changes)
    return trained("crd(nce_k=4096)+kd", settings=CRD | changes, kind="contrastive", changed=changed)


def test_weights_and_changed_settings_are_shown_and_all_are_in_the_long_form() -> None:
    sheet = settings(StudyResults([trained("kd", changed=()), crd()]))
    of_methods, recipe = map(texts, sheet.tables)
    assert of_methods.index.tolist() == ["kd", "crd(nce_k=4096)+kd"]
    assert of_methods.iloc[1].tolist() == [
        "contrastive",
        "ce_weight=1, kd_weight=1 (changed), crd_weight=0.8, nce_k=4096 (changed)",  # without nce_t, a default
        "all",
    ]
    assert of_methods.iloc[0].tolist() == ["–", "ce_weight=1", "all"]
    rows = csv.document(sheet).splitlines()
    assert rows[0] == "dataset,recipe,teacher,student,method,kind,setting,value,changed"
    assert "cifar100,paper,resnet56,resnet20,crd(nce_k=4096)+kd,contrastive,nce_t,0.07,False" in rows
    assert "cifar100,paper,resnet56,resnet20,crd(nce_k=4096)+kd,contrastive,nce_k,4096,True" in rows
    assert "cifar100,paper,,,,,batch,64," in rows
    assert recipe["value"].to_dict() == {
        "optimizer": "sgd, momentum 0.9, weight decay 0.0005",
        "learning rate": "0.05",
        "schedule": "times 0.1 after epochs 150, 180, 210",
        "batch": "64",
        "epochs": "240",
        "augmentation": "random crops after padding by 4 pixels, horizontal flips",
        "image size": "32 pixels",
        "gradient clipping": "none",
        "precision": "fp32",
    }
    assert len(sheet.notes) == 1


def test_old_records_show_all_settings_and_say_why() -> None:
    old = crd()
    sheet = settings(StudyResults([replace(old, trial=replace(old.trial, kind="", changed=None))]))
    row = texts(sheet.tables[0]).iloc[0].tolist()
    assert row == ["–", "ce_weight=1, kd_weight=1, crd_weight=0.8, nce_k=4096, nce_t=0.07", "all"]
    assert "older versions" in sheet.notes[1]
    assert csv.document(sheet).splitlines()[-1].endswith(",,nce_t,0.07,")


def test_settings_that_differ_between_pairs_have_a_line_each() -> None:
    published = [
        trained("crd@published", pair=pair, settings={"crd_weight": weight}, changed=())
        for pair, weight in ((OTHER, 0.5), (("a", "b"), 0.5), (("c", "d"), 2.0))
    ]
    rows = settings(StudyResults([*published, trained("kd")])).tables[0].rows
    assert [(row.label, row.cells[1].text, row.cells[2].text) for row in rows[1:]] == [
        ("crd@published", "crd_weight=0.5", "vgg13 → vgg8 and a → b"),
        ("crd@published", "crd_weight=2", "c → d"),
    ]


def test_a_recipe_names_the_students_of_its_smaller_rate_and_what_is_not_shared() -> None:
    cosine = replace(PAPER, optimizer="adamw", schedule="cosine", pad=0, max_grad_norm=5.0)
    records = [trained(VANILLA, lr=0.01, recipe=cosine), trained("kd", lr=0.01, recipe=cosine)]
    records += [trained("kd", pair=pair, recipe=cosine) for pair in (OTHER, ("a", "b"))]
    value = texts(settings(StudyResults(records)).tables[1])["value"]
    assert value["learning rate"] == "0.05, 0.01 (resnet20)"
    assert value["optimizer"] == "adamw, weight decay 0.0005"
    assert value["schedule"] == "cosine"
    assert value["augmentation"] == "horizontal flips"
    assert value["gradient clipping"] == "norm 5"
    records.append(trained("kd", pair=("c", "d"), recipe=replace(cosine, batch_size=128)))
    assert texts(settings(StudyResults(records)).tables[1])["value"]["batch"] == "64; 128"


def test_a_setting_is_text_that_markdown_shows_as_it_is() -> None:
    sheet = settings(StudyResults([trained("kd", settings={"layers": "a*|*b"})]))
    assert "layers=a\\*\\|\\*b" in markdown.document(sheet)
    assert settings(StudyResults([])).tables == []
