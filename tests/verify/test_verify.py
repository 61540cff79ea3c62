"""The golden vectors through the command, and that it notices when a loss is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.cli.main import main
from kdbench.distill import registry
from kdbench.verify.check import check, mapping
from kdbench.verify.vectors import DTYPES, Vectors, load

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"
CASES = {f"{case.method}/{case.case}": case for case in load(GOLDEN) if case.method in mapping()}
NAMES = "kd,fitnet,at,sp,cc,vid,rkd,pkt,ab,ft,fsp,nst,crd,icd,rrd_fifo,rrd_momentum"


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_authors_values(name: str, precision: str) -> None:
    case = CASES[name]
    verdict = check(case, mapping()[case.method], precision, torch.device("cpu"))
    assert verdict.passed, verdict.problems


def test_every_method_of_the_paper_has_vectors() -> None:
    served = {how.get("method", name) for name, how in mapping().items()}
    assert served == {info.name for info in registry.infos().values() if info.core}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--golden", str(GOLDEN), "--require", NAMES]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^crd +p1 +float64 .* ok *$", printed, re.MULTILINE)
    assert "no counterpart in kdbench: " in printed
    assert main(["verify", "--golden", str(GOLDEN), "--require", "kd,dkd"]) == 1
    assert "required, and without a case: dkd" in capsys.readouterr().out
    assert main(["verify", "--golden", str(GOLDEN / "nowhere")]) == 2
    assert "index.json is not an index of golden vectors" in capsys.readouterr().err


EDITS: dict[str, tuple[str, Callable[..., Any]]] = {
    "kd": ("soft_kl", lambda f: lambda s, t, temperature: f(s, t, temperature) / temperature),
    "fitnet": ("ConvRegressor", lambda f: lambda s, t, relu: f(s, t, relu=not relu)),
    "vid": ("F", lambda f: SimpleNamespace(softplus=lambda scale: f.softplus(scale) * 1.001)),
    "at": ("attention_distance", lambda f: lambda s, t: f(s, t) * 1.001),
    "sp": ("batch_similarity", lambda f: lambda s, t: f(s, t) * len(s)),
    "nst": ("squared_discrepancy", lambda f: lambda s, t: f(s, t) * 0.999),
    "cc": ("neighbouring_products", lambda f: lambda s, t: f(s, t) * (len(s) - 1) / len(s)),
    "pkt": ("neighbour_divergence", lambda f: lambda s, t: f(s, t) * len(s)),
    "rkd": ("angles", lambda f: lambda e: f(e) * 0.99),
    "ab": ("boundary_loss", lambda f: lambda s, t, margin: f(s, t, 1.01 * margin)),
    "fsp": ("flow", lambda f: lambda maps: [each * 1.001 for each in f(maps)]),
    "ft": ("factor_distance", lambda f: lambda s, t: f(s, t) ** 2),
    "crd": ("nce", lambda f: lambda p, images: f(p, images + 1)),
    "icd": ("contrastive_and_invariance", lambda f: lambda s, t, scale, bias: f(t, s, scale, bias)),
    "rrd_fifo": ("relation", lambda f: lambda s, t, hyper: f(s, t, replace(hyper, nce_t_s=1.001 * hyper.nce_t_s))),
    "rrd_momentum": ("scores", lambda f: lambda anchor, memory, rows, z, t: f(anchor, memory, rows, z, 1.001 * t)),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_changed_factor_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    function, edit = EDITS[name]
    how = mapping()[name]
    home = "kdbench.distill.objective" if name == "kd" else f"kdbench.methods.{how.get('method', name)}"
    module = importlib.import_module(home)
    monkeypatch.setattr(module, function, edit(getattr(module, function)))
    for case in CASES.values():
        if case.method == name:
            for precision in DTYPES:
                verdict = check(case, how, precision, torch.device("cpu"))
                assert any(" is off by " in problem for problem in verdict.problems), verdict.problems  # no mere crash


def test_every_method_with_vectors_is_changed_once() -> None:
    assert {case.method for case in CASES.values()} == set(EDITS)


def test_changed_vectors_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    case = CASES["vid/p1"]
    arrays = {name: value.numpy() for name, value in case.arrays.items()}
    arrays["grad_param.vid.1.log_scale"] = arrays["grad_param.vid.1.log_scale"] * 1.001
    np.savez(tmp_path / "vid_p1.npz", allow_pickle=False, **arrays)
    (tmp_path / "index.json").write_text(json.dumps({"cases": [case.entry]}))
    assert main(["verify", "--golden", str(tmp_path)]) == 1
    assert "grad_param.vid.1.log_scale is off by 1.0e-03" in capsys.readouterr().out
    shutil.copy(tmp_path / "index.json", tmp_path / "vid_p1.npz")
    assert main(["verify", "--golden", str(tmp_path)]) == 1
    assert "cannot be read as golden vectors" in capsys.readouterr().out


def test_a_missing_parameter_is_a_failure() -> None:
    case = CASES["cc/p1"]
    broken = Vectors(case.folder, case.entry)
    broken.arrays["param.embed_other.weight"] = torch.zeros(2)
    verdict = check(broken, mapping()["cc"], "float64", torch.device("cpu"))
    assert verdict.problems == ["KeyError: 'the method has no parameter or memory embed_other.weight'"]
