from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

from kdbench.distill import Distiller, Hyper, Output, register, registry
from kdbench.distill.objective import objective
from tests.methods.build import batch_of, make


@dataclass(frozen=True)
class ToyHyper(Hyper):
    width: Annotated[int, "how wide"] = 3


@pytest.fixture
def clean() -> Iterator[None]:
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


def test_every_method_file_is_found() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "methods").glob("*.py")} - {"__init__"}
    assert files <= set(registry.infos())
    assert registry.discover() == {}


@pytest.mark.usefixtures("clean")
def test_names_are_taken_once_and_well_formed() -> None:
    with pytest.raises(ValueError, match=r"'kd' is taken by methods\.kd"):
        register("kd", Hyper, paper="-")(type("Other", (Distiller,), {}))
    misplaced = type("Other", (Distiller,), {"__module__": "kdbench.methods.file"})
    with pytest.raises(ValueError, match="a method is called as its file"):
        register("other", Hyper, paper="-")(misplaced)
    for name in ("My", "a-b", "", "1x"):
        with pytest.raises(ValueError, match="lower-case"):
            register(name, Hyper, paper="-")(type("Other", (Distiller,), {}))


def test_settings_are_declared_with_their_help() -> None:
    found = {setting.name: setting for setting in registry.settings_of(ToyHyper)}
    assert (found["width"].kind, found["width"].default, found["width"].help) == ("int", 3, "how wide")
    assert found["kd_temperature"].default == 4.0
    assert all(setting.help for info in registry.infos().values() for setting in info.settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ce_weight": -1.0}, "ce_weight must not be negative"),
        ({"kd_temperature": 0.0}, "kd_temperature must be above 0"),
        ({"kd_weight": float("nan")}, "kd_weight must be a finite number"),
    ],
)
def test_impossible_settings(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Hyper(**settings)


def test_all_methods_refuse_what_cannot_be() -> None:
    infos = registry.infos()
    assert infos["vanilla"].check({"ce_weight": 2.0}) is not None
    assert infos["crd"].check({"nce_k": 0}) is not None
    assert infos["crd"].check({"nce_m": 1.0}) is not None
    assert infos["icd"].check({"alpha": -0.5}) is not None
    assert infos["icd"].check({"unknown": 1}) is not None


METHOD = '''
"""Doc."""
from helper_beside.{package}_other import factor, OFFSET
from kdbench.distill import Distiller, Hyper, soft_kl

# a comment
class Mine(Distiller[Hyper]):
    """Doc."""
    def losses(self, student, teacher, batch, epoch):
        "doc"
        return {{"x": {number} * factor(student.logits.sum()) + OFFSET}}
'''


def _hash(folder: Path, number: str, other: str, name: str) -> str:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text(f"OFFSET = {other}\ndef factor(x):\n    return x\n")
    text = METHOD.replace("helper_beside.{package}_other", f"{name}.other").format(number=number)
    (package / "mine.py").write_text(text)
    cls: Any = importlib.import_module(f"{name}.mine").Mine
    found = registry.code_hash(cls).replace(name, "")
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]
    return found


def test_the_hash_sees_edits_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (Path(__file__).parents[2] / "methods" / "icd.py").read_text()
    same = source.replace('"""', '"""New words. ', 1).replace("# [B, B]", "# another comment")
    edited = source.replace("dim=0", "dim=1")
    assert source not in (same, edited)
    assert registry._normal(source) == registry._normal(same)
    assert registry._normal(source) != registry._normal(edited)

    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for folder, number, other in (("a", "2", "3"), ("b", "2", "3"), ("c", "4", "3"), ("d", "2", "5")):
        (tmp_path / folder).mkdir()
        monkeypatch.syspath_prepend(tmp_path / folder)
        importlib.invalidate_caches()
        hashes.append(_hash(tmp_path / folder, number, other, "made_up"))
        monkeypatch.undo()
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3  # an edited method, and a constant in a file beside it, count


@pytest.mark.usefixtures("clean")
def test_settings_that_cannot_be_typed_are_refused_at_once() -> None:
    @dataclass(frozen=True)
    class Wrong(Hyper):
        widths: tuple[int, ...] = (1, 2)

    @dataclass(frozen=True)
    class Listed(Hyper):
        widths: list[int] = field(default_factory=list)

    wrong = {Wrong: "must be bool, int, float or str", Listed: "must be bool", object: "inherits Hyper"}
    for hyper, sentence in wrong.items():
        with pytest.raises(TypeError, match=sentence):
            register("wrong", hyper, paper="-")(type("Other", (Distiller,), {}))


@pytest.mark.usefixtures("clean")
def test_a_broken_file_leaves_the_others_usable() -> None:
    def half() -> None:
        register("half", Hyper, paper="-")(type("Half", (Distiller,), {}))
        raise SyntaxError("invalid syntax")

    assert registry._attempt(half) == "SyntaxError: invalid syntax"
    assert "half" not in registry._METHODS


def test_the_objective_is_the_same_for_every_method() -> None:
    labels = torch.tensor([0, 1, 1])
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    student, teacher = Output(logits, (), logits), Output(logits + 1, (), logits)
    batch = batch_of(3, labels=labels)
    method = make("kd", {"ce_weight": 0.5, "kd_weight": 2.0}, student=2, teacher=2, labels=labels, dtype=torch.float32)
    terms = objective(method, student, teacher, batch, 1)
    assert terms["ce"].item() == pytest.approx(0.5 * torch.nn.functional.cross_entropy(logits, labels).item())
    assert terms["kd"].item() == pytest.approx(0.0, abs=1e-6)  # the softmax of equal logits up to a constant

    nothing = make("kd", {"ce_weight": 0.0, "kd_weight": 0.0}, student=2, teacher=2, labels=labels, dtype=torch.float32)
    with pytest.raises(ValueError, match="no term"):
        objective(nothing, student, teacher, batch, 1)

    class Greedy(Distiller[Hyper]):
        def losses(self, *args: Any) -> dict[str, torch.Tensor]:
            return {"ce": torch.zeros(())}

    class Vector(Distiller[Hyper]):
        def losses(self, *args: Any) -> dict[str, torch.Tensor]:
            return {"v": torch.zeros(3)}

    for cls, sentence in ((Greedy, "needs another name"), (Vector, "must be a scalar")):
        with pytest.raises(ValueError, match=sentence):
            objective(cls(Hyper(), None, torch.Generator()), student, teacher, batch, 1)  # type: ignore[arg-type]


@pytest.mark.usefixtures("clean")
def test_methods_of_other_packages_come_in_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def __init__(self, value: str, load: Any) -> None:
            self.value, self.load = value, load

    def good() -> None:
        register("theirs", Hyper, paper="-")(type("Theirs", (Distiller,), {"__module__": "their_package.anything"}))

    def bad() -> None:
        raise ImportError("no module named their_other")

    points = [Point("their_package.anything", good), Point("their_other.method", bad)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "kdbench.methods" else [])
    broken = registry.discover.__wrapped__()
    assert registry.distiller("theirs").name == "theirs"
    assert broken == {"their_other.method": "ImportError: no module named their_other"}
