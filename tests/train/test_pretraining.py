"""The stage before the main one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdbench.models import build, names
from kdbench.train.backbone import backbone_modules
from tests.train.tiny_study import EPOCHS, Quiet, equal, train, trial

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text("utf-8"))["archs"]


@pytest.mark.parametrize("arch", names())
def test_pretraining_trains_what_the_published_code_trains(arch: str) -> None:
    network = build(arch, 10, 32)
    modules = backbone_modules(network, 32, torch.device("cpu"))
    children = dict(network.named_children())
    published = [children[name] for name in GOLDEN[arch]["feat_modules"] if name in children]
    owners = [module for child in published for module in child.modules() if list(module.parameters(recurse=False))]
    assert {id(module) for module in modules} == {id(module) for module in owners}


@pytest.mark.parametrize("method", ["ab", "ft", "vid", "rrd", "rrd_momentum(nce_k=20)"])
def test_methods_with_state_are_the_same_alone_in_a_cohort_and_resumed(tmp_path: Path, method: str) -> None:
    trials = [trial(name) for name in (method, "crd(nce_k=20)", "fitnet")]
    key = f"{trials[0].method}/resnet8"
    together = train(tmp_path / "together", *trials)
    assert together[key].status == "done", together[key].reason
    alone = train(tmp_path / "alone", trials[0])
    assert equal(alone[key], together[key])
    train(tmp_path / "parts", *trials, stop_after=1)
    observer = Quiet()
    resumed = train(tmp_path / "parts", *trials, observer=observer)
    assert [epoch for epoch, _ in observer.trained] == list(range(2, EPOCHS + 1))
    assert equal(resumed[key], together[key])
    assert together[key].extra_info == alone[key].extra_info == resumed[key].extra_info
    if method in ("ab", "ft"):
        assert together[key].extra_info["pretraining_epochs"] == 1
        assert 0 < float(together[key].extra_info["pretraining_loss"]) < 1e6


def test_pretraining_changes_where_the_main_stage_starts(tmp_path: Path) -> None:
    outcomes = train(tmp_path, trial("ab"), trial("icd(icd_weight=0)"))
    first, plain = (outcomes[f"{name}/resnet8"] for name in ("ab", "icd(icd_weight=0)"))
    assert set(first.epochs[0].terms) == {"ce"}
    assert first.epochs[0].terms["ce"] != plain.epochs[0].terms["ce"]
