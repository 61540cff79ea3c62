"""The command line: bad input is one sentence and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import kdbench
from kdbench.cli import run
from kdbench.cli.main import main
from kdbench.core.events import JobEnd, JobStarted
from kdbench.core.jobs import CohortJob
from kdbench.models import build
from tests.train.tiny_study import cohort, trial

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--methods", "kd", "--pairs", "resnet20:resnet8", "--dataset", "digits", "--seeds", "1", "--epochs", "1"]


def bad(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must be refused; returns its sentence."""
    assert main(list(argv)) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("kdbench: ")
    assert not [found for found in printed.out.splitlines() if " training and " not in found]
    return line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--methods", "crb"], ["unknown method 'crb'", "did you mean 'crd'", "list methods"]),
        (["--methods", "kd(temperature=2)"], ["'temperature'", "did you mean 'kd_temperature'"]),
        (["--methods", "kd(kd_temperature=2"], ["the end", "character 20"]),
        (["--methods", "kd(kd_temperature=-1)"], ["kd_temperature must be above 0"]),
        (["--pairs", "resnet20:resnet9"], ["unknown model 'resnet9'", "list models"]),
        (["--pairs", "smae"], ["unknown pair 'smae'", "did you mean 'same'", "list pairs"]),
        (["--pairs", "vgg13:vgg8", "--size", "16", "--subset", "99999"], ["99999"]),
        (["--dataset", "digit"], ["'digit'", "digits", "list datasets"]),
        (["--recipe", "papper"], ["unknown recipe 'papper'", "did you mean 'paper'", "list recipes"]),
        (["--seeds", "many"], ["--seeds 'many'"]),
        (["--epochs", "0"], ["--epochs must be at least 1"]),
        (["--epochs", "ten"], ["--epochs", "'ten'"]),
        (["--method", "kd"], ["--method", "did you mean --methods"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--device", "abacus"], ["--device 'abacus'"]),
        (["--classes", "3"], ["leaves one class"]),
        (["--classes", "0-12"], ["12"]),
        (["--subset", "20"], ["20 training images", "batch of 64"]),
        (["--rerun", "never"], ["--rerun 'never'"]),
        (["--checkpoint-every", "never"], ["--checkpoint-every 'never'", "10min"]),
        (["--max-grad-norm", "0"], ["--max-grad-norm must be a finite number above 0"]),
        (["--threads", "0"], ["--threads"]),
        (["--threads", "100000"], ["--threads", "processors of this machine"]),
        (["--precision", "int8"], ["--precision", "int8"]),
        (["transfer"], ["--to"]),
        (
            ["transfer", "--to", "digits", "--protocol", "frozzen"],
            ["unknown protocol 'frozzen'", "did you mean 'frozen'"],
        ),
        (["transfer", "--to", "digits", "--epochs", "0"], ["--epochs must be at least 1"]),
        (["transfer", "--to", "digits", "--out", "/nonexistent"], ["/nonexistent holds no records"]),
        (["figures", "--samples", "2"], ["--samples must be at least 3"]),
        (["figures", "--out", "/nonexistent"], ["/nonexistent holds no records"]),
        (["rapport"], ["unknown command 'rapport'", "did you mean 'report'"]),
        (["--methods", "zebra"], ["unknown method 'zebra': see"]),
        (["--methods", "icd", "--baseline", "nosuch"], ["unknown baseline 'nosuch'", "vanilla, icd"]),
        (["--methods", "icd", "--baseline", "crd", "--dry-run"], ["unknown baseline 'crd'"]),
        (["--time-limit", "soon"], ["--time-limit 'soon'", "50min"]),
        (["status", "--out", "/nonexistent"], ["/nonexistent holds no plan"]),
        (["list", "metods"], ["metods", "methods"]),
    ],
)
def test_bad_words(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], words: list[str]) -> None:
    out = tmp_path / "out"
    options = [] if not argv[0].startswith("-") else ["--out", str(out)]
    if options and "--dataset" not in argv:
        options += ["--dataset", "digits"]
    line = bad(capsys, *argv, *options)
    for word in words:
        assert word in line
    assert not list(out.rglob("*.json"))


def test_missing_results_and_unwritable_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "holds no records" in bad(capsys, "report", "--out", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "cannot be written" in bad(capsys, *SMALL, "--out", str(tmp_path / "file"))


def test_bad_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "cache")]
    line = bad(capsys, *common, "--dataset", f"folder:{tmp_path / 'nowhere'}")
    assert "nowhere" in line
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "broken.parquet" in bad(capsys, *common, "--dataset", f"parquet:{tmp_path / 'broken.parquet'}")


def test_teacher_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = [*SMALL, "--out", str(tmp_path / "out")]
    torch.save({"model": build("resnet14", 10, 8).state_dict()}, tmp_path / "other.pth")
    line = bad(capsys, *common, "--teacher", str(tmp_path / "other.pth"))
    assert "does not hold a resnet20" in line
    assert "resnet14" in line
    assert "does not exist" in bad(capsys, *common, "--teacher", str(tmp_path / "none.pth"))
    assert "no checkpoint of resnet20" in bad(capsys, *common, "--teacher-dir", str(tmp_path))
    both = ["--teacher", str(tmp_path / "other.pth"), "--teacher-dir", str(tmp_path)]
    assert "not both" in bad(capsys, *common, *both)
    two = [*common, "--pairs", "resnet20:resnet8,wrn_16_2:resnet8"]
    assert "use --teacher-dir" in bad(capsys, *two, "--teacher", str(tmp_path / "other.pth"))


def test_help_is_quick_and_needs_no_torch() -> None:
    probe = "import sys, kdbench.cli.main as c; c.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for words in (["list", "pairs"], ["list", "datasets"], ["list", "recipes"]):
        subprocess.run([sys.executable, "-c", probe, *words], cwd=ROOT, check=True, capture_output=True)
    seconds = []
    for _ in range(3):  # the quickest of three: the machine may be busy
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "bench.py", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - started)
        assert "--methods" in done.stdout
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("methods", ["vanilla", "crd", "arXiv:1910.10699", "contrastive", "2020", "pre-activations"]),
        ("pairs", ["same", "wrn_40_2:wrn_16_2", "cross", "ResNet50:vgg8"]),
        ("datasets", ["digits", "cifar100", "folder:PATH", "parquet:PATH"]),
        ("models", ["resnet8x4", "1.23 M", "177.1 M", "ShuffleV2"]),
        ("recipes", ["paper", "quick", "digits"]),
    ],
)
def test_lists(capsys: pytest.CaptureFixture[str], what: str, words: list[str]) -> None:
    assert main(["list", what]) == 0
    printed = capsys.readouterr().out
    for word in words:
        assert word in printed


def test_methods_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--kind", "logits"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert "kd" in names
    assert "crd" not in names


def test_the_page_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "crd"]) == 0
    page = capsys.readouterr().out
    for text in ("Paper:", "arXiv:1910.10699", "Loss:", "Defaults:", "Differs:", "nce_k", "16384", "methods/crd.py"):
        assert text in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "methods", "fitnett"], "did you mean 'fitnet'"),
        (["list", "pairs", "crd"], "only methods have pages"),
        (["list", "methods", "--kind", "logit"], "invalid choice: 'logit'"),
    ],
)
def test_bad_lists(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_the_list_of_methods_is_readable_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from kdbench.cli import list as list_command

    monkeypatch.setattr(list_command, "console", lambda: Console(width=80, force_terminal=True, no_color=True))
    assert main(["list", "methods"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    row = next(line for line in lines if line.startswith("crd "))
    assert "2020" in row
    assert "contrastive" in row
    assert "Contrastive" in row
    assert "classifier, last map" in next(line for line in lines if line.startswith("simkd "))


def test_a_dry_run_trains_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*SMALL, "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "3 trials: 0 already there, 3 to train in 2 cohorts" in printed
    assert "estimated time on this device: " in printed
    assert re.search(r"disk needed: \d+ MiB for results, up to \d+ MiB for checkpoints; \d", printed)
    assert not out.exists()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kdbench {kdbench.__version__}\n"


def test_the_report_is_imported_once_a_processor_has_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []

    class Thread:
        def __init__(self, target: object, daemon: bool) -> None:
            self.target = target

        def start(self) -> None:
            begun.append(self.target)

    monkeypatch.setattr(threading, "Thread", Thread)
    idle, job = run._WhenIdle(print), CohortJob(cohort(trial("kd")))
    started = [JobStarted(job, number, 3) for number in (1, 2, 3)]
    seen = []
    for event in (started[0], started[1], JobEnd(job), started[2], JobEnd(job), JobEnd(job)):
        idle(event)
        seen.append(len(begun))
    assert seen == [0, 0, 0, 0, 1, 1]
    assert begun == [print]
