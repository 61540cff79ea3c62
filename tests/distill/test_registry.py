from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import torch

from kdbench.distill import Context, Distiller, Hyper, Output, Published, Range, register, registry
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes
from tests.methods.build import batch_of, make, step_of

SHAPES = FeatureShapes((), False, 2)
CONTEXT = Context(SHAPES, (SHAPES,), 2, torch.tensor([0, 1]), generator=torch.Generator())


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
    files = {path.stem for path in (Path(__file__).parents[2] / "methods").glob("*.py")}
    assert files <= set(registry.infos())
    assert registry.discover() == {}


@pytest.mark.usefixtures("clean")
def test_names_are_taken_once_and_well_formed() -> None:
    with pytest.raises(ValueError, match=r"'kd' is taken by kdbench\.methods\.kd"):
        register("kd", Hyper, paper="-")(type("Other", (Distiller,), {}))
    misplaced = type("Other", (Distiller,), {"__module__": "kdbench.methods.file"})
    with pytest.raises(ValueError, match="a method is called as its file"):
        register("other", Hyper, paper="-")(misplaced)
    for name in ("My", "a-b", "", "1x"):
        with pytest.raises(ValueError, match="lower-case"):
            register(name, Hyper, paper="-")(type("Other", (Distiller,), {}))


def test_settings_are_declared_with_their_help() -> None:
    settings = {setting.name: setting for setting in registry.settings_of(ToyHyper)}
    assert (settings["width"].kind, settings["width"].default, settings["width"].help) == ("int", 3, "how wide")
    assert settings["kd_temperature"].default == 4.0
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


def test_ranges_are_part_of_a_setting() -> None:
    @dataclass(frozen=True)
    class Tuned(Hyper):
        tuned_weight: Annotated[float, "how much", Range(0.1, 10, log=True)] = 1.0

    setting = {setting.name: setting for setting in registry.settings_of(Tuned)}["tuned_weight"]
    assert (setting.help, setting.range) == ("how much", Range(0.1, 10, log=True))
    for low, high, log in ((1.0, 1.0, False), (2.0, 1.0, False), (0.0, 1.0, True)):
        with pytest.raises(ValueError, match="is not a range"):
            Range(low, high, log)


@pytest.mark.usefixtures("clean")
def test_kinds_and_groups_are_known_ones() -> None:
    for kind, group in (("logit", "own"), ("logits", "core")):
        with pytest.raises(ValueError, match="is not one of"):
            register("toy", ToyHyper, paper="-", kind=kind, group=group)(type("Toy", (Distiller,), {}))
    register("toy", ToyHyper, paper="x", year=2021, kind="features")(type("Toy", (Distiller,), {"__module__": "toy"}))
    assert registry._METADATA["toy"] == (2021, "features", "own")


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
    outputs = Output(logits, (), logits), Output(logits + 1, (), logits)
    step = step_of(*outputs, batch=batch_of(3, labels=labels))
    method = make("kd", {"ce_weight": 0.5, "kd_weight": 2.0}, student=2, teacher=2, labels=labels, dtype=torch.float32)
    terms = objective(method, step)
    assert terms["ce"].item() == pytest.approx(0.5 * torch.nn.functional.cross_entropy(logits, labels).item())
    assert terms["kd"].item() == pytest.approx(0.0, abs=1e-6)  # the softmax of equal logits up to a constant

    nothing = make("kd", {"ce_weight": 0.0, "kd_weight": 0.0}, student=2, teacher=2, labels=labels, dtype=torch.float32)
    with pytest.raises(ValueError, match="no term"):
        objective(nothing, step)

    class Greedy(Distiller[Hyper]):
        def losses(self, *args: Any) -> dict[str, torch.Tensor]:
            return {"ce": torch.zeros(())}

    class Vector(Distiller[Hyper]):
        def losses(self, *args: Any) -> dict[str, torch.Tensor]:
            return {"v": torch.zeros(3)}

    for cls, sentence in ((Greedy, "needs another name"), (Vector, "must be a scalar")):
        with pytest.raises(ValueError, match=sentence):
            objective(cls(Hyper(), CONTEXT), step)


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


@pytest.mark.parametrize(
    ("published", "sentence"),
    [
        (Published("source", {}), "must be a tuple"),
        ({"resnet56:resnet20": {"alpha": 1.0}}, "must be a tuple"),
        ((Published("source", {"resnet56:resnet20": {"alfa": 1.0}}),), "resnet56:resnet20: kd has no setting alfa"),
        ((Published("source", {}, given={"form": "x"}),), "given: kd has no setting form"),
    ],
)
def test_published_settings_that_cannot_be_used(published: object, sentence: str) -> None:
    module = ModuleType(registry.distiller("kd").__module__)
    module.PUBLISHED = published  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=sentence):
        registry.check_published(module)
