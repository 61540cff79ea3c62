"""A study is the same whether it is typed, read from a file or given in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.cli.run import build_parser
from kdbench.core.errors import UserError
from kdbench.core.recipe import OPTIMIZERS, SCHEDULES
from kdbench.plan.expand import expand
from kdbench.plan.study import SELECT, RunOptions, Study, StudyOptions, convert_options, read_options, resolve
from kdbench.report.epoch_rules import RULES
from kdbench.train import optim
from tests.plan.catalog import CATALOG, DATA

FILE = """
[study]
methods = ["kd", "one(alpha=0.25)+kd"]
pairs = ["big:small"]
seeds = [0, 4]
epochs = 12
teacher_dir = "teachers"

[run]
out = "there"
threads = 1
"""
TYPED = ["--methods", "kd,one(alpha=0.25)+kd", "--pairs", "big:small", "--seeds", "0,4", "--epochs", "12"]
GIVEN = {"methods": ("kd", "one(alpha=0.25)+kd"), "pairs": ["big:small"], "seeds": [0, 4], "epochs": 12}


def fingerprints(study: Study) -> list[str]:
    return [trial.fingerprint for trial in expand(study, DATA, CATALOG).trials]


def resolved(given: dict[str, object], path: Path | None = None) -> tuple[Study, RunOptions]:
    options, run, recipes = read_options(given, path)
    return resolve(options, lambda: CATALOG, recipes), run


def test_three_ways_to_one_study(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    from_file, run = resolved({}, path)
    typed, _ = resolved(vars(build_parser().parse_args(TYPED)))
    given, _ = resolved(dict(GIVEN))
    assert fingerprints(from_file) == fingerprints(typed) == fingerprints(given)
    assert from_file.options.teacher_dir == tmp_path / "teachers"
    assert run == RunOptions(out=tmp_path / "there", threads=1)


def test_what_is_given_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    study, run = resolved({"seeds": "7,", "out": Path("here")}, path)
    assert (study.seeds, study.recipe.epochs, run.out, run.threads) == ((7,), 12, Path("here"), 1)


def test_the_resolved_file_is_the_same_study(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        '[study]\nmethods = "one"\npairs = "big:small"\nseeds = 1\nlr = 0.1\nrecipe = "mine"\ntext = 1\n'.replace(
            "text = 1\n", ""
        )
        + '[recipe.mine]\nbase = "quick"\nepochs = 9\nmilestones = [4, 6.5]\noptimizer = "adamw"\n'
    )
    study, _ = resolved({}, path)
    assert study.recipe.milestones == (4.0, 6.5)
    assert (study.recipe.label, study.recipe.optimizer) == ("mine,lr=0.1", "adamw")
    again = tmp_path / "resolved.toml"
    again.write_text(study.toml())
    assert fingerprints(resolved({}, again)[0]) == fingerprints(study)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[study]\nmethod = 'kd'\n",
            r"unknown option 'method': did you mean 'methods'",
        ),
        ("[studies]\n", r"unknown table 'studies': did you mean 'study'"),
        ("study = 3\n", r"study must be a table"),
        ("[study\n", r"is not TOML"),
        ("[study]\nepochs = 'ten'\n", r"\[study\] epochs must be a whole number, not 'ten'"),
        ("[study]\nlr = true\n", r"\[study\] lr must be a number, not True"),
        ("[run]\nmethods = 'kd'\n", r"unknown option 'methods'"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nbase = 'papr'\n", r"unknown recipe 'papr': did you mean 'paper'"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nepoch = 3\n", r"unknown field 'epoch': did you mean 'epochs'"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nepochs = 0\n", r"\[recipe.mine\] epochs: 0 is not a whole number"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nlr = -1\n", r"\[recipe.mine\] lr: -1 is not a number of 0 or more"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\noptimizer = 'adam'\n", r"unknown optimizer 'adam'"),
        ("[recipe.paper]\nepochs = 3\n", r"\[recipe.paper\]: this name is taken"),
        ("[recipe.'v1.5']\nepochs = 3\n", r"the recipe name 'v1.5' must begin with a letter"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nbase = ['paper']\n", r"needs a base of"),
        ("[study]\nrecipe = 'mine'\n[recipe.mine]\nmax_grad_norm = 0\n", r"max_grad_norm must be above 0, got 0"),
        (
            "[study]\nrecipe = 'mine'\n[recipe.mine]\nschedule = 'cosine'\ngamma = 0.5\n",
            r"\[recipe.mine\] gamma has no effect",
        ),
        ("[run]\nselect = 'bset'\n", r"unknown value 'bset': did you mean 'best'"),
        ("[run]\nselect = 'validation'\n", r"needs images held out by --val-fraction"),
        ('[study]\ndataset = "folder:a\\nb"\n', r"dataset has control characters"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        resolved({"pairs": "big:small"}, path)
    with pytest.raises(UserError, match="cannot be read"):
        resolved({}, tmp_path / "absent.toml")


def test_values_from_python_are_converted() -> None:
    options = convert_options(StudyOptions, {"seeds": 5, "classes": range(3), "lr": 1, "size": None})
    assert options == StudyOptions(seeds="5", classes="0,1,2", lr=1.0)
    assert convert_options(StudyOptions, {"seeds": [5]}).seeds == "5,"


def test_paths_of_data_are_relative_to_the_file_and_absolute_in_the_resolved_one(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[study]\ndataset = 'folder:pets'\npairs = 'big:small'\nmethods = 'kd'\n")
    study, _ = resolved({}, path)
    assert study.data.source == f"folder:{tmp_path / 'pets'}"
    typed, _ = resolved({"dataset": "folder:pets", "pairs": "big:small", "methods": "kd", "epochs": None})
    assert typed.data.source == "folder:pets"
    assert f'dataset = "folder:{Path.cwd() / "pets"}"' in typed.toml()


def test_names_of_rules_are_those_of_the_report() -> None:
    assert tuple(RULES) == SELECT
    assert tuple(OPTIMIZERS) == tuple(optim.OPTIMIZERS)
    assert tuple(SCHEDULES) == tuple(optim.SCHEDULES)
