"""Fingerprints are pinned: one that changes makes every record of its trials worthless.

A new field must leave them as they are, by a default that does not enter the hash. A change to what they stand for
raises PROTOCOL instead, and then all of them change at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdbench.core.data import DataRequest
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.trial import TeacherSource
from kdbench.plan import pairs, recipes
from kdbench.plan.expand import expand
from kdbench.plan.expressions import parse
from kdbench.plan.study import Study
from tests.plan.catalog import CATALOG, DATA

PINNED = {
    "paper": "31d239898920",
    "epochs": "c189a76aa002",
    "lr": "ba5968abdbf9",
    "size": "f336308b3ee0",
    "clip": "74654187c05a",
    "own recipe": "83c703882628",
    "bf16": "508f97f9fe82",
    "two teachers": "b091d6c2c96e",
    "teacher file": "a768e3ccd41a",
    "other data": "5c156c2a2b34",
    "paper: vanilla big": "38a3e1e7c669",
    "paper: vanilla small": "2451d664b518",
    "paper: kd small": "92f65b5ac479",
    "paper: one(alpha=0.25)+kd small": "c49b839548f8",
    "paper: selfish small": "31d239898920",
    "probe": "4c802ae03929",
    "batch norms": "b47cb9205290",
    "views": "99d6e8e90f39",
    "seed 7: kd": "828f10aecfc1",
    "seed 8: kd": "61e30a8b5f85",
}


def fingerprints() -> dict[str, str]:
    """Twenty trials and probes, each with something that the others do not have."""
    own = {"mine": {"base": "quick", "epochs": 9, "optimizer": "adamw", "schedule": "cosine"}}
    variants: dict[str, dict[str, Any]] = {
        "paper": {},
        "epochs": {"recipe": recipes.recipe("paper", epochs=6)},
        "lr": {"recipe": recipes.recipe("paper", lr=0.1)},
        "size": {"recipe": recipes.recipe("paper", size=64)},
        "clip": {"recipe": recipes.recipe("paper", max_grad_norm=5.0)},
        "own recipe": {"recipe": recipes.recipe("mine", own)},
        "bf16": {"precision": "bf16"},
        "two teachers": {"pairs": pairs.parse("big+small:small", "cifar100")},
    }
    methods = parse("kd,one(alpha=0.25)+kd,selfish", CATALOG)
    base = Study(
        DataRequest("cifar100", 32),
        recipes.recipe("paper"),
        methods,
        pairs.parse("big:small", "cifar100"),
        (0,),
        "fp32",
    )
    files = {"big": TeacherSource("big", file="/anywhere.pth", sha256="ab" * 32)}
    plans = {name: expand(replace(base, **changes), DATA, CATALOG) for name, changes in variants.items()}
    plans["teacher file"] = expand(base, DATA, CATALOG, files=files)
    plans["other data"] = expand(base, replace(DATA, content="other", flip=False), CATALOG)
    found = {name: plan.pending[-1].fingerprint for name, plan in plans.items()}
    found |= {f"paper: {trial.method} {trial.arch}": trial.fingerprint for trial in plans["paper"].pending}
    source = plans["paper"].pending[0]
    probes: dict[str, dict[str, Any]] = {"probe": {}, "batch norms": {"bn_train_mode": True}, "views": {"views": 2}}
    for name, changes in probes.items():
        probe = LinearProbe(source, "f" * 64, DATA, recipes.recipe("quick"), False, 1, 0.05, "fp32")
        found[name] = replace(probe, **changes).fingerprint
    seeds = expand(replace(base, seeds=(7, 8)), DATA, CATALOG).pending
    found |= {f"seed {trial.seed}: {trial.method}": trial.fingerprint for trial in seeds if trial.method == "kd"}
    return found


def test_fingerprints_stay() -> None:
    assert fingerprints() == PINNED
    assert len(PINNED) >= 20
    assert len(set(PINNED.values())) == len(PINNED) - 1  # `paper` is one of the trials that are named by their method
