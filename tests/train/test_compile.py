"""`--compile`: networks are called through torch.compile, everything else is as without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.cli import run as cli_run
from kdbench.core.record import Outcome
from kdbench.plan.study import read_options
from kdbench.train.device import configure_torch, describe_environment
from tests.train.tiny_study import CPU, equal, train, trial


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    configure_torch(CPU, "fp32", threads)


COMPILING = 0.5  # seconds


class _Compiled(nn.Module):
    """Stands for what torch.compile returns, without the minutes it takes."""

    calls = 0  # of all networks

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.first = network, True

    def forward(self, *args: Any, **options: Any) -> Any:
        if self.first:
            time.sleep(COMPILING)
        self.first = False
        _Compiled.calls += 1
        return self.network(*args, **options)


def both(folder: Path) -> dict[str, Outcome]:
    return train(folder, trial("kd"), trial("icd"))


def test_networks_are_called_through_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = both(tmp_path / "plain")
    assert "compiled" not in describe_environment(CPU)
    monkeypatch.setattr(torch, "compile", _Compiled)
    monkeypatch.setattr(_Compiled, "calls", 0)
    configure_torch(CPU, "fp32", None, compiles=True)
    compiled = both(tmp_path / "compiled")
    assert describe_environment(CPU)["compiled"] is True
    assert _Compiled.calls == (1 + 2) * 3 * 3  # the teacher and two students, in three epochs of three steps
    for name, outcome in compiled.items():
        assert equal(plain[name], outcome)
        assert outcome.weights is not None
        assert outcome.weights.keys() == (plain[name].weights or {}).keys()
        assert 0.7 * COMPILING < float(outcome.cost["compile_seconds"]) < 2 * COMPILING
        first = outcome.epochs[0]
        assert first.student_seconds < COMPILING
        assert 0 < first.shared_seconds < COMPILING
        assert "compile_seconds" not in plain[name].cost


def test_the_option_reaches_the_run() -> None:
    for words, compiles in ([], False), (["--compile"], True):
        args = cli_run.build_parser().parse_args(["--dataset", "digits", *words])
        _, run, _ = read_options(vars(args), None)
        assert run.compile is compiles


@pytest.mark.slow
def test_compiled_networks_train_alike(tmp_path: Path) -> None:
    """The real compiler: rounding differs, and nothing else."""
    plain = both(tmp_path / "plain")
    configure_torch(CPU, "fp32", None, compiles=True)
    compiled = both(tmp_path / "compiled")
    for name, outcome in compiled.items():
        assert outcome.status == "done"
        for term, value in plain[name].epochs[0].terms.items():
            assert outcome.epochs[0].terms[term] == pytest.approx(value, rel=1e-3)
        assert float(outcome.cost["compile_seconds"]) > 0
