"""Ctrl-C and SIGTERM, once and twice; the rest is in test_end_to_end.py."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from kdbench.cli.interruption import Signals
from tests.faults.laboratory import Study

WORDS = ["--methods", "kd", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--seeds", "1"]


def test_polite_first_and_at_once_then() -> None:
    signals = Signals()
    with signals.patient():
        signals._heard(signal.SIGTERM, None)
        assert signals.asked()
        assert signals.code == 143
        with pytest.raises(KeyboardInterrupt):
            signals._heard(signal.SIGINT, None)
    assert signals.code == 130
    with pytest.raises(KeyboardInterrupt):
        Signals()._heard(signal.SIGINT, None)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_safely(tmp_path: Path) -> None:
    study = Study(tmp_path, [*WORDS, "--epochs", "60"])
    process = study.start()
    while not list(study.out.glob("checkpoints/*.pt")):
        time.sleep(0.01)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert time.monotonic() - started < 3
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "the same command goes on" in printed
    assert "to train in" in study.run(None, "--dry-run")
    assert not [name for name in study.files() if name.endswith(".tmp")]
