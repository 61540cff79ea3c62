"""`--compile`: networks are called through torch.compile, everything else is as without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.cli import run as cli_run
from kdbench.core.record import Outcome
from kdbench.plan.study import read_options, resolve
from kdbench.runner.catalog import build_catalog
from kdbench.runner.parallel import Parallel
from kdbench.runner.study_run import _write_study
from kdbench.train.device import configure_torch, describe_environment
from tests.train.tiny_study import CPU, equal, train, trial


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    configure_torch(CPU, "fp32", threads)


COMPILING = 1000.0  # seconds, which only the clock of these tests takes


class _Compiled(nn.Module):
    """Stands for what torch.compile returns: another graph for training, for evaluation, and for other options."""

    calls = 0  # of all networks
    seconds = 0.0  # that compiling has taken

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.graphs = network, set[object]()

    def forward(self, *args: Any, **options: Any) -> Any:
        graph = (self.network.training, *sorted(options.items()))
        if graph not in self.graphs:
            _Compiled.seconds += COMPILING
        self.graphs.add(graph)
        _Compiled.calls += 1
        return self.network(*args, **options)


@pytest.fixture
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.perf_counter
    monkeypatch.setattr(_Compiled, "calls", 0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + _Compiled.seconds)
    monkeypatch.setattr(torch, "compile", _Compiled)


def both(folder: Path) -> dict[str, Outcome]:
    return train(folder, trial("kd"), trial("icd"))


@pytest.mark.usefixtures("_compiler")
def test_networks_are_called_through_the_compiler(tmp_path: Path) -> None:
    plain = both(tmp_path / "plain")
    assert "compiled" not in describe_environment(CPU)
    configure_torch(CPU, "fp32", None, compiles=True)
    compiled = both(tmp_path / "compiled")
    assert describe_environment(CPU)["compiled"] is True
    assert _Compiled.calls == (1 + 2) * 3 * 3  # the teacher and two students, in three epochs of three steps
    for name, outcome in compiled.items():
        assert equal(plain[name], outcome)
        assert outcome.weights is not None
        assert outcome.weights.keys() == (plain[name].weights or {}).keys()
        assert outcome.cost["compile_seconds"] == pytest.approx(COMPILING, rel=1e-2)
        assert "compile_seconds" not in plain[name].cost
        for epoch in outcome.epochs:
            assert 0 < epoch.student_seconds < COMPILING
            assert 0 < epoch.shared_seconds < COMPILING


@pytest.mark.usefixtures("_compiler")
def test_compiling_counts_in_no_epoch(tmp_path: Path) -> None:
    """A stage before the main one compiles networks as well, and the teacher again if more is required after it."""
    configure_torch(CPU, "fp32", None, compiles=True)
    outcomes = train(tmp_path, trial("ft"), trial("reviewkd"))
    for outcome in outcomes.values():
        assert outcome.status == "done"
        assert all(epoch.student_seconds < COMPILING and epoch.shared_seconds < COMPILING for epoch in outcome.epochs)
    stages = {name.split("/")[0]: round(float(o.cost["compile_seconds"]) / COMPILING) for name, o in outcomes.items()}
    assert stages == {"ft": 2, "reviewkd": 1}


def test_the_option_reaches_the_run() -> None:
    for words, compiles in ([], False), (["--compile"], True):
        args = cli_run.build_parser().parse_args(["--dataset", "digits", *words])
        _, run, _ = read_options(vars(args), None)
        assert run.compile is compiles


def test_the_file_of_a_study_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options, run, _ = read_options({"dataset": "digits", "compile": True, "out": tmp_path}, None)
    study = resolve(options, lambda: build_catalog(None))
    parallel = Parallel(1, None, (CPU,), compiles=True)
    _write_study(run, study, parallel, resumes=False)
    _, again, _ = read_options({}, tmp_path / "study.toml")
    assert again.compile
    assert caplog.messages == []
    _write_study(replace(run, compile=False), study, parallel, resumes=True)
    words = "checkpoints were made with --compile and go on without it: the last bits of results may differ"
    assert caplog.messages == [words]
    _, again, _ = read_options({}, tmp_path / "study.toml")
    assert not again.compile


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
