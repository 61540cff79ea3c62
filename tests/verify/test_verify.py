"""The golden vectors through the command, and that it notices when a loss is wrong."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.cli.main import main
from kdbench.core.trial import VANILLA
from kdbench.distill import Step, registry
from kdbench.verify.check import Comparison, check
from kdbench.verify.vectors import DTYPES, Vectors, load
from tests.methods.expectations import METHODS, expectations

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"
MAPPED = registry.golden()
CASES = {f"{case.method}/{case.case}": case for case in load(GOLDEN) if case.method in MAPPED}
CPU = torch.device("cpu")


def compare(case: Vectors, precision: str) -> Comparison:
    return check(case, *MAPPED[case.method], precision, CPU)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_authors_values(name: str, precision: str) -> None:
    comparison = compare(CASES[name], precision)
    assert comparison.passed, comparison.problems


def test_every_method_of_the_paper_has_vectors() -> None:
    verified = {MAPPED[case.method][0] for case in CASES.values()}
    assert {name for name in METHODS if registry.infos()[name].group == "paper"} <= verified
    assert VANILLA not in verified


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = ",".join(sorted({case.method for case in CASES.values()}))
    assert main(["verify", "--golden", str(GOLDEN), "--require", names]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^crd +p1 +float64 .* ok *$", printed, re.MULTILINE)
    assert main(["verify", "--golden", str(GOLDEN), "--require", "kd,no_such_method"]) == 1
    assert "required, and without a case: no_such_method" in capsys.readouterr().out
    assert main(["verify", "--golden", str(GOLDEN / "nowhere")]) == 2
    assert "index.json is not an index of golden vectors" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted({case.method for case in CASES.values()}))
def test_a_wrong_factor_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the method's test module declares; else all of its terms, a thousandth too large."""
    method, golden = MAPPED[name]
    if mutation := expectations(method).mutations.get(name):
        owner, _, attribute = mutation.target.rpartition(".")
        module = pkgutil.resolve_name(owner)
        monkeypatch.setattr(module, attribute, mutation.edit(getattr(module, attribute)))
    else:
        cls = registry.distiller(method)
        losses = cls.pretraining_losses if golden.pretraining else cls.losses

        def scaled(self: object, step: Step) -> dict[str, Tensor]:
            return {term: 1.001 * value for term, value in losses(self, step).items()}  # type: ignore[arg-type]

        monkeypatch.setattr(cls, losses.__name__, scaled)
    for case in CASES.values():
        if case.method == name:
            for precision in DTYPES:
                problems = compare(case, precision).problems
                assert any(" is off by " in problem for problem in problems), problems  # no mere crash


def test_changed_vectors_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert compare(broken, "float64").problems == [
        "KeyError: 'the method has no parameter or memory embed_other.weight'"
    ]
