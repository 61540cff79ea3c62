"""The whole program as a user runs it, on the built-in digits."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdbench.models import build

ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--pairs", "resnet20:resnet8", "--dataset", "digits", "--epochs", "2", "--seeds", "2"]


def bench(*argv: str, out: Path, cwd: Path = ROOT, code: int = 0) -> str:
    """Standard output of `bench.py`; its exit code must be `code`."""
    command = [sys.executable, str(cwd / "bench.py"), *argv, "--out", str(out)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def records(out: Path) -> dict[str, dict[str, object]]:
    paths = [path for path in (out / "runs").glob("*.json") if not path.name.endswith(".epochs.json")]
    return {path.name: json.loads(path.read_text()) for path in paths}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "tables" / "accuracy.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    printed = bench("--methods", "kd,icd", *COMMON, out=out)
    assert "7 trials: 0 already there, 7 to train" in printed
    return out


def test_a_study_leaves_tables_and_charts(study: Path) -> None:
    found = {row["method"]: row for row in rows(study)}
    assert list(found) == ["teacher", "vanilla", "kd", "icd"]
    for name in ("vanilla", "kd", "icd"):
        assert (found[name]["dataset"], found[name]["recipe"], found[name]["n"]) == ("digits", "digits@2", "2")
        assert 10 < float(found[name]["top1_mean"]) <= 100
        assert found[name]["top1_sd"]
        assert not found[name]["published"]
    assert found["teacher"]["n"] == "1"
    assert "resnet20 → resnet8" in (study / "tables" / "accuracy.md").read_text("utf-8")
    charts = {path.suffix for path in (study / "charts").iterdir()}
    assert charts == {".png", ".svg"}
    assert not list((study / "checkpoints").iterdir())
    for record in records(study).values():
        assert record["status"] == "done"
        assert record["environment"]["torch"] == torch.__version__  # type: ignore[index]


def test_the_same_command_trains_nothing_and_a_new_method_trains_alone(study: Path) -> None:
    before = records(study)
    assert "7 already there, 0 to train" in bench("--methods", "kd,icd", *COMMON, out=study)
    assert records(study) == before
    assert "7 already there, 2 to train in 2 cohorts" in bench("--methods", "kd,icd,icd+kd", *COMMON, out=study)
    after = records(study)
    assert {name: after[name] for name in before} == before
    assert {row["method"] for row in rows(study)} == {"teacher", "vanilla", "kd", "icd", "icd+kd"}


def test_report_rebuilds_what_was_lost(study: Path) -> None:
    table = (study / "tables" / "accuracy.csv").read_text()
    for path in (*(study / "tables").iterdir(), *(study / "charts").iterdir()):
        path.unlink()
    probe = "import sys, kdbench.cli.main as c; assert c.main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    argv = [sys.executable, "-c", probe, "report", "--out", str(study)]
    printed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "resnet8" in printed
    assert (study / "tables" / "accuracy.csv").read_text() == table
    assert list((study / "charts").glob("*.png"))


def test_an_edited_loss_trains_again_and_nothing_else(study: Path, tmp_path: Path) -> None:
    for name in ("bench.py", "kdbench", "methods", "results"):
        source = ROOT / name
        if source.is_dir():
            (tmp_path / name).mkdir()
            for path in source.rglob("*"):
                if path.suffix in (".py", ".csv") and "runs" not in path.parts:
                    target = tmp_path / path.relative_to(ROOT)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
        else:
            (tmp_path / name).write_bytes(source.read_bytes())
    assert "7 already there, 0 to train" in bench("--methods", "kd,icd", *COMMON, "--dry-run", out=study, cwd=tmp_path)
    method = tmp_path / "methods" / "icd.py"
    text = method.read_text("utf-8")
    method.write_text(text.replace("dim=1).mean()", "dim=1).mean() * 2.0"))
    assert method.read_text("utf-8") != text
    printed = bench("--methods", "kd,icd", *COMMON, "--dry-run", out=study, cwd=tmp_path)
    assert "5 already there, 2 to train in 2 cohorts" in printed
    assert re.findall(r"seed \d: (.*)", printed) == ["icd", "icd"]


def test_a_new_file_is_a_new_method(tmp_path: Path) -> None:
    """The example of CONTRIBUTING.md: a file, and its test."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    example, its_test = ("\n".join(line.removeprefix("   ") for line in block.splitlines()) + "\n" for block in blocks)
    package = tmp_path / "their_methods"
    package.mkdir()
    (package / "embedding.py").write_text(example, "utf-8")
    found = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        f"import kdbench.methods; kdbench.methods.__path__.append({str(package)!r})\n"
    )
    command = "from kdbench.cli.main import main\nsys.exit(main())\n"
    (tmp_path / "bench.py").write_text(found + command)
    tested = tmp_path / "tested.py"
    tested.write_text(f"{found}{its_test}\ntest_embedding_by_hand()\n{command}")
    out = tmp_path / "out"
    listed = subprocess.run(
        [sys.executable, str(tested), "list", "methods"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert re.search(r"^embedding +2026 +features +own +arXiv:0000.00000 .*Embedding matching", listed, re.MULTILINE)
    bench("--methods", "embedding", *COMMON[:-1], "1", out=out, cwd=tmp_path)
    assert [row["status"] for row in rows(out) if row["method"] == "embedding"] == ["done"]


def test_a_teacher_file_is_used_and_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": build("resnet20", 10, 8).state_dict(), "epoch": 240}, tmp_path / "resnet20_best.pth")
    printed = bench("--methods", "kd", *COMMON, "--teacher-dir", str(tmp_path), out=tmp_path / "out")
    assert "4 trials: 0 already there, 4 to train in 4 cohorts" in printed
    found = {row["method"]: row for row in rows(tmp_path / "out")}
    assert "file" in found["teacher"]["reason"]
    assert float(found["teacher"]["top1_mean"]) < 30  # untrained: the file's own accuracy, not a trained teacher's
    for record in records(tmp_path / "out").values():
        trial = record["trial"]
        for source in trial["teachers"]:  # type: ignore[index]
            assert len(source["sha256"]) == 64


INTERRUPTED = ["--methods", "kd", *COMMON[:4], "--epochs", "6", "--seeds", "1"]


def test_a_reader_that_leaves_is_no_failed_trial(tmp_path: Path) -> None:
    argv = f"{sys.executable} bench.py {' '.join(INTERRUPTED)} --out {tmp_path} | true"
    subprocess.run(["bash", "-c", argv], cwd=ROOT, capture_output=True, check=True, timeout=120)
    assert not [record for record in records(tmp_path).values() if record["status"] == "failed"]


def test_a_failed_trial_is_shown_and_sets_the_exit_code(tmp_path: Path) -> None:
    printed = bench("--methods", "kd,icd(icd_weight=1e38)", *COMMON[:-1], "1", out=tmp_path, code=1)
    assert "diverged: the loss was not finite from epoch 1" in printed
    (row,) = [row for row in rows(tmp_path) if row["method"].startswith("icd")]
    assert row["status"] == "diverged"
    assert "not finite" in row["reason"]
    again = bench("--methods", "kd,icd(icd_weight=1e38)", *COMMON[:-1], "1", out=tmp_path, code=1)
    assert "4 already there, 0 to train" in again


PRETRAINED = "timm/mobilenetv3_small_050:pretrained"
SMALL = ["--dataset", "digits", "--size", "32", "--subset", "128", "--epochs", "1", "--seeds", "1", "--methods", "kd"]


def test_pretrained_weights_are_timms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub cache as a download leaves it, without any connection; a second start needs it no more."""
    import timm
    from safetensors.torch import save_file

    repository = tmp_path / "hub" / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    torch.manual_seed(0)
    weights = timm.create_model("mobilenetv3_small_050").state_dict()
    save_file(weights, snapshot / "model.safetensors")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    out = tmp_path / "out"
    command = [*SMALL, "--pairs", f"{PRETRAINED}:resnet8", "--lr", "1e-6"]
    bench(*command, out=out)
    (teacher,) = (path for path in (out / "runs").glob("*mobilenetv3*vanilla*.pt"))
    trained = torch.load(teacher, weights_only=True)
    # Two steps at a rate of 1e-6 leave the weights that it started from, but for its new classifier.
    torch.testing.assert_close(trained["network.conv_stem.weight"], weights["conv_stem.weight"], rtol=0, atol=1e-4)
    assert trained["network.classifier.weight"].shape[0] == 10
    assert any(row["teacher"] == "timm/mobilenetv3_small_050.lamb_in1k:pretrained" for row in rows(out))

    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert "3 already there, 0 to train" in bench(*command, out=out)


def test_weights_that_cannot_be_fetched_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "bench.py", *SMALL, "--pairs", f"{PRETRAINED}:resnet8", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("kdbench: the weights of timm/mobilenetv3_small_050.lamb_in1k could not be fetched (")
    assert not list((tmp_path / "out").rglob("*.json"))


def test_transfers_of_a_study(study: Path, tmp_path: Path) -> None:
    argv = ["transfer", "--to", "digits", "--classes", "0-4", "--methods", "kd,icd"]
    argv += ["--protocol", "frozen,authors", "--epochs", "2"]
    printed = bench(*argv, out=study)
    assert "14 transfers: 0 already there, 14 to train" in printed  # two protocols; teacher, and three students twice
    assert "digits[0-4]" in printed
    with (study / "tables" / "transfer.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["protocol"] == "frozen@2"]
    assert [(row["method"], row["n"], row["status"]) for row in found] == [
        *(("teacher", "1", "done"), ("vanilla", "2", "done"), ("kd", "2", "done"), ("icd", "2", "done"))
    ]
    assert all(20 <= float(row["top1_mean"]) <= 100 for row in found)
    kept = {path.name: path.read_bytes() for path in (study / "transfers").iterdir()}
    assert len(kept) == 14
    assert "14 transfers: 14 already there, 0 to train" in bench(*argv, out=study)
    assert kept == {path.name: path.read_bytes() for path in (study / "transfers").iterdir()}
    few = bench(*argv[:5], "--protocol", "frozen", "--methods", "kd", out=study)
    assert "5 transfers: 0 already there, 5 to train" in few  # other epochs; teacher, vanilla and kd
    assert "transfer.md" in {path.name for path in (study / "tables").iterdir()}
    assert "Top-1 accuracy after transfer" in (study / "report.html").read_text("utf-8")
    assert "transfers: 19 done" in bench("status", out=study)


def test_transfers_side_by_side_are_those_of_one_job(study: Path, tmp_path: Path) -> None:
    argv = ["transfer", "--to", "digits", "--classes", "0-3", "--methods", "kd", "--epochs", "2", "--threads", "1"]
    found = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        shutil.copytree(study, out)
        printed = bench(*argv, "--jobs", jobs, out=out)
        assert ("2 jobs side by side, 1 thread each" in printed) == (jobs == "2")
        with (out / "tables" / "transfer.csv").open(newline="") as file:
            found.append([(row["method"], row["protocol"], row["top1_mean"]) for row in csv.DictReader(file)])
    assert len(found[0]) >= 3
    assert found[0] == found[1]


def test_figures_of_a_study(study: Path, tmp_path: Path) -> None:
    printed = bench("figures", "--samples", "60", "--methods", "kd,icd", out=study)
    assert "resnet20 → resnet8" in printed
    with (study / "tables" / "fidelity.csv").open(newline="") as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    assert list(found) == ["teacher", "vanilla", "kd", "icd"]
    trained = {row["method"]: row for row in rows(study)}
    for method, row in found.items():  # the networks are those of the accuracy table
        assert float(row["top1_mean"]) == pytest.approx(float(trained[method]["top1_mean"]), abs=1e-3)
    assert not found["teacher"]["agreement_mean"]
    with (study / "tables" / "metrics.csv").open(newline="") as file:  # from the records, without any network
        recorded = {row["method"]: row for row in csv.DictReader(file)}
    for method in ("vanilla", "kd", "icd"):
        for name in ("ece", "nll", *(("agreement", "kl") if method != "vanilla" else ())):
            assert float(recorded[method][f"{name}_mean"]) == pytest.approx(
                float(found[method][f"{name}_mean"]), abs=1e-3
            ), (method, name)
    assert 0 < float(found["kd"]["cka_mean"]) <= 1
    damaged = tmp_path / "damaged"
    shutil.copytree(study, damaged)
    for path in (damaged / "runs").glob("*.icd.s0.*.pt"):
        path.write_bytes(b"")
    argv = [sys.executable, "bench.py", "figures", "--methods", "icd", "--out", str(damaged)]
    refused = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    *_, named, sentence = refused.stderr.splitlines()
    assert "it was moved to damaged/: its record stands" in named
    assert "is damaged: its SHA-256 is not the one in its record" in sentence
    kinds = {path.name.split(".")[0] for path in (study / "charts").iterdir()}
    assert {"correlation", "reliability", "tsne-embeddings", "tsne-logits"} <= kinds


def test_a_pair_with_two_teachers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--methods", "kd,icd", "--pairs", "wrn_16_1+resnet14:resnet8", "--dataset", "digits", "--seeds", "1"]
    printed = bench(*argv, "--epochs", "1", out=out)
    assert "5 trials: 0 already there, 4 to train in 2 cohorts, 1 not applicable" in printed
    table = {row["method"]: row for row in rows(out)}
    assert {row["teacher"] for row in table.values()} == {"resnet14+wrn_16_1"}
    assert (table["kd"]["status"], table["icd"]["status"]) == ("done", "n/a")
    assert table["icd"]["reason"] == "it is made for 1 teacher, and the pair has 2"
    assert float(table["teacher"]["top1_mean"]) > 0
    assert "resnet14+wrn_16_1" in bench("figures", "--samples", "50", out=out)
    assert "0 to train" in bench(*argv, "--epochs", "1", out=out)


def test_a_time_limit_a_status_and_no_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--methods", "kd", *COMMON[:-3], "30", "--seeds", "1"]
    assert "kdbench" not in bench(*argv, "--time-limit", "1s", out=out, code=130)
    status = bench("status", out=out)
    assert status.startswith("3 trials: 2 interrupted, 1 waiting\nleft, by one command")
    argv = ["--methods", "kd", *COMMON[:-1], "1"]
    bench(*argv, "--keep-weights", "none", out=out)
    assert bench("status", out=out) == "3 trials: 3 done\n"
    assert not list((out / "runs").glob("*.pt"))
    assert "3 already there, 0 to train" in bench(*argv, out=out)
    (record,) = (content for name, content in records(out).items() if ".kd." in name)
    assert record["metrics"].keys() == {"nll", "ece", "agreement", "kl"}  # type: ignore[attr-defined]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    assert ("commit" in record["environment"]) == (commit.returncode == 0)  # type: ignore[operator]
