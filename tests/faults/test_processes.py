"""Several processes on one results folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.core import processes
from kdbench.results.serialize import dumps_checksummed
from kdbench.run.claims import Claims, Work
from tests.faults.fault_study import Study, end, written

WORDS = ["--methods", "kd,sp", "--pairs", "wrn_16_2:resnet8", "--dataset", "digits", "--threads", "1"]


def _work(names: str, after: str = "") -> Work[str]:
    return Work(names, frozenset(names), frozenset(after))


def _nobody(*_: object) -> None:
    raise AssertionError("there is nobody to wait for")


@pytest.mark.parametrize("doomed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_four_at_once_do_everything_once(tmp_path: Path, doomed: bool) -> None:
    alone = Study(tmp_path / "alone", [*WORDS, "--seeds", "2", "--epochs", "3"])
    together = Study(tmp_path / "together", alone.words)
    log = tmp_path / "log"
    processes = [together.start({"log": str(log)}) for _ in range(4)]
    if doomed:
        victim = None
        while victim is None:  # the first that has something in hand and has kept a state of it
            time.sleep(0.01)
            for path in together.out.glob("claims/*.json"):
                if '"names": []' not in path.read_text("utf-8") and list(together.out.glob("checkpoints/*.pt")):
                    victim = next(each for each in processes if each.pid == int(path.stem.split("-")[1]))
        end(victim)
        processes.remove(victim)
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    alone.run()
    assert together.trials() == alone.trials()
    assert together.files() == alone.files()
    writes = written(log)
    assert len(writes) == 7
    assert set(writes.values()) == {1}
    assert all("7 trials" in text and "top-1 accuracy (%)" in text for text in printed)


def test_names_are_shared_out_once(tmp_path: Path) -> None:
    done: set[str] = set()
    with Claims(tmp_path) as claims:
        order = []
        for group, names in claims.share([_work("cd", after="a"), _work("ab")], done.__contains__, _nobody):
            order.append(group)
            assert names == set(group)
    assert order == ["ab", "cd"]  # what needs `a` comes after it
    assert list((tmp_path / "claims").iterdir()) == [tmp_path / "claims" / "lock"]


def test_what_others_finished_is_not_done_again(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        given = list(claims.share([_work("ab"), _work("c")], "bc".__contains__, _nobody))
    assert given == [("ab", frozenset("a"))]


def _theirs(folder: Path, name: str, names: str) -> Path:
    path = folder / "claims" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(dumps_checksummed({"names": list(names)}))
    return path


class _Waiter:
    """Lets the others get on each time somebody waits for them."""

    def __init__(self, *deeds: object) -> None:
        self.deeds: Iterator[object] = iter(deeds)
        self.heard: list[int] = []

    def __call__(self, count: int, processes: object) -> None:
        self.heard.append(count)
        deed = next(self.deeds)
        assert callable(deed)
        deed()


def test_what_a_living_process_has_is_waited_for(tmp_path: Path) -> None:
    theirs = _theirs(tmp_path, "00000000-1-1", "ab")  # on another machine, and it gives a sign of life
    done: set[str] = set()
    waiter = _Waiter(lambda: done.add("a"), theirs.unlink)
    with Claims(tmp_path) as claims:
        given = list(claims.share([_work("abc"), _work("d", after="b")], done.__contains__, waiter))
    assert given == [("abc", frozenset("c")), ("abc", frozenset("b")), ("d", frozenset("d"))]
    assert waiter.heard == [3, 3]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_what_a_dead_process_had_is_taken_over(tmp_path: Path, where: str) -> None:
    machine, _, started = processes.process().split("-")
    name = f"{machine}-99999999-{started}" if where == "here" else "00000000-1-1"
    theirs = _theirs(tmp_path, name, "ab")
    if where == "elsewhere":
        os.utime(theirs, (time.time() - 301,) * 2)
    with Claims(tmp_path) as claims:
        assert list(claims.share([_work("ab")], "".__contains__, _nobody)) == [("ab", frozenset("ab"))]
    assert not theirs.exists()


def test_a_process_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.run.claims._HEARTBEAT", 0.02)
    with Claims(tmp_path):
        (mine,) = tmp_path.glob("claims/*.json")
        assert json.loads(mine.read_text("utf-8"))["names"] == []
        os.utime(mine, (0, 0))
        deadline = time.monotonic() + 20
        while mine.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
