"""Studies from Python: run, load_results, register; and plugins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kdbench
from kdbench.cli.main import main
from kdbench.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = '''
"""Of nobody."""

import torch
from torch import Tensor

from kdbench.core.data import DataRequest
from kdbench.distill import Distiller, Hyper, Step, register, soft_kl


@register("plugged", Hyper, paper="-")
class Plugged(Distiller[Hyper]):
    """Divergence of softened logits."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"kl": soft_kl(step.student.logits, step.teacher.logits, 2.0)}


RECIPES = {"short": {"base": "digits", "epochs": 1}}
SOURCES = {"stripes": "images of stripes"}


def find(request: DataRequest, data_dir):
    from kdbench.data.dataset import Decoded, Source, Split

    def decode(size: int) -> Decoded:
        labels = torch.arange(130) % 2
        rows = torch.arange(size) % 2 * 255
        images = torch.zeros(130, size, size, 3, dtype=torch.uint8)
        images[labels == 0] = rows[:, None, None].to(torch.uint8)
        images[labels == 1] = rows[None, :, None].to(torch.uint8)
        split = Split(images, labels)
        return Decoded(split, split, {0: "horizontal", 1: "vertical"})

    return Source("stripes", {}, decode, cached=False)
'''


def test_run_and_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"pairs": "wrn_16_1:resnet8", "dataset": "digits", "seeds": [0], "epochs": 1, "out": out}
    table = kdbench.run(methods=["kd"], quiet=True, **options)
    assert capsys.readouterr().out == ""
    assert list(table["method"]) == ["teacher", "vanilla", "kd"]
    assert set(table["status"]) == {"done"}
    pd.testing.assert_frame_equal(table, kdbench.load_results(out))
    assert (out / "report.html").is_file()
    # The resolved file, another number of processes away, is the same study: nothing is left to train.
    assert main(["--study", str(out / "study.toml"), "--out", str(out)]) == 0
    assert "3 already there, 0 to train" in capsys.readouterr().out


def test_wrong_options_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'method': did you mean 'methods'"):
        kdbench.run(method="kd")
    with pytest.raises(UserError, match="unknown value 'first'"):
        kdbench.run(select="first", out=tmp_path)
    with pytest.raises(UserError, match="holds no records"):
        kdbench.load_results(tmp_path)


def test_plugins_bring_methods_data_and_recipes(tmp_path: Path) -> None:
    """In a process of its own, since what is registered stays."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN)
    command = [sys.executable, "bench.py", "--plugins", str(folder), "--methods", "plugged", "--dataset", "stripes"]
    command += ["--recipe", "short", "--pairs", "wrn_16_1:resnet8", "--seeds", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stripes, short: Top-1 accuracy (%)" in done.stdout
    assert "plugged" in done.stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "import nothing_of_this_name",
            "failed to import: ModuleNotFoundError: No module named",
        ),
        (
            "from kdbench.distill import *\n@register('kd', Hyper, paper='-')\nclass Mine(Distiller): pass\n",
            "failed to import: ValueError: the method name 'kd' is taken by kdbench.methods.kd",
        ),
        ("SOURCES = {'digits': 'mine'}", "failed to import: ValueError: the data set 'digits' is taken"),
        (None, "there is no Python file"),
    ],
)
def test_a_wrong_plugin_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str
) -> None:
    path = tmp_path / f"wrong_{len(text or '')}.py"
    if text is not None:
        path.write_text(text)
    assert main(["--plugins", str(path), "--dataset", "digits", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_importing_kdbench_loads_nothing_heavy() -> None:
    probe = "import sys, kdbench; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


def test_a_notebook_defines_a_method_trains_it_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "own_method.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without its outputs
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    interrupted, table, equal = (cell for cell in notebook.cells if cell.get("outputs"))
    printed = "".join(output.get("text", "") for output in interrupted.outputs)
    assert printed.rstrip().endswith("interrupted")
    assert "resume from checkpoints" in "".join(output.get("text", "") for output in table.outputs)
    assert "cosine" in table.outputs[-1].data["text/plain"]
    assert equal.outputs[-1].data["text/plain"] == "True"
    records = list((tmp_path / "cosine" / "runs").glob("*.cosine.s*.json"))
    assert len([path for path in records if not path.name.endswith(".epochs.json")]) == 1
