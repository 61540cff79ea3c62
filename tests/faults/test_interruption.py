"""Ctrl-C and SIGTERM, once and twice."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdbench.runner.signals import Signals
from tests.faults.fault_study import Study

WORDS = ["--methods", "kd", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--seeds", "1"]
POLITE = "kdbench: finishing this step and saving checkpoints; press again to stop at once"


def test_polite_first_and_at_once_then() -> None:
    signals = Signals()
    with signals.orderly():
        signals._handle(signal.SIGTERM, None)
        assert signals.asked()
        assert signals.code == 143
        with pytest.raises(KeyboardInterrupt):
            signals._handle(signal.SIGINT, None)
    assert signals.code == 130
    with pytest.raises(KeyboardInterrupt):
        Signals()._handle(signal.SIGINT, None)


def _training(study: Study) -> subprocess.Popen[str]:
    """The study's process, after its first epoch."""
    process = study.start()
    deadline = time.monotonic() + 120
    while not list(study.out.glob("checkpoints/*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("undisturbed"), [*WORDS, "--epochs", "4"])
    study.run()
    return study


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_goes_on(tmp_path: Path, undisturbed: Study, number: int, code: int) -> None:
    study = Study(tmp_path, undisturbed.words)
    process = _training(study)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code
    said = [line for line in printed.splitlines() if line.startswith("kdbench:") and "decoding" not in line]
    assert said == [POLITE, "kdbench: interrupted, nothing is lost; the same command continues from this step"]
    assert not study.finished_at()
    assert list(study.out.glob("checkpoints/*.pt"))

    again = study.run()
    assert "3 to train" in again
    assert "resume from checkpoints" in again
    assert study.trials() == undisturbed.trials()
    assert study.files() == undisturbed.files()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_safely(tmp_path: Path) -> None:
    study = Study(tmp_path, [*WORDS, "--epochs", "60"])
    process = _training(study)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert time.monotonic() - started < 3
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "the same command continues" in printed
    assert "to train in" in study.run(None, "--dry-run")
    assert not [name for name in study.files() if name.endswith(".tmp")]
