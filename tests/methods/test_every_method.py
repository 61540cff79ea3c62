"""The contract, over the registry: a new method is covered at once. What is special about one, its test module says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from kdbench import models
from kdbench.core.trial import VANILLA, Pair, Value
from kdbench.distill import Output, Shapes, registry
from kdbench.models import build, classifier_of
from kdbench.plan import pairs
from kdbench.train.teacher import Teacher
from tests.methods.build import (
    CLASSES,
    EPOCHS,
    all_terms,
    batch_of,
    construct,
    convert_all,
    convert_teachers,
    incompatibility,
    random_step,
    requirements,
    shapes_of_pair,
    shared_tensors,
    step_with,
    student_tensors,
    values,
)
from tests.methods.expectations import METHODS, ROOT, Expectations, expectations, test_module

DIGITS = [(pair, 8) for pair in pairs.sets("digits")["all"]]
PAPER = [(pair, 32) for pair in pairs.sets("cifar100")["all"]]
FEW = [(pair, size) for pair, size in PAPER if str(pair) in ("resnet32x4:resnet8x4", "wrn_40_2:wrn_40_1")]

every_method = pytest.mark.parametrize("name", METHODS)


def supported(name: str) -> list[Shapes]:
    """The shapes of the small pairs that the method supports; of the paper's if there are none."""
    for candidates in (DIGITS, PAPER):
        shapes = [shapes_of_pair(name, *candidate) for candidate in candidates]
        if chosen := [known for known in shapes if not incompatibility(name, known)]:
            return chosen
    pytest.fail(f"{name} supports no pair")


def teacher_terms(name: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the teacher adds to the labels' term; for methods without a teacher, all terms."""
    return {term: value for term, value in terms.items() if term != "ce" or not requirements(name).min_teachers}


# The files.


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "methods").glob("[!_]*.py")))
def test_every_method_file_is_registered_and_has_its_test_module(name: str) -> None:
    assert name in METHODS
    expectations(name)


def test_a_method_without_a_test_module_is_told_what_to_write() -> None:
    with pytest.raises(AssertionError, match=r"'newcomer' has no tests/methods/test_newcomer\.py: write it, with at"):
        test_module("newcomer")


# One step.


@cache
def outputs(arch: str, size: int, train: bool, version: int) -> Output:
    """What a real network returns for four random images; another `version` has other images."""
    torch.manual_seed(0)
    network = build(arch, CLASSES, size).train(train)
    with torch.no_grad():
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(version))
        output: Output = network(images, pre_activations=True).materialize()
    return replace(output, classifier=classifier_of(network))


def check_one_step(name: str, pair: Pair, size: int, declared: bool = True) -> None:
    """Finite terms; gradients that reach the student without the labels' help; nothing shared is changed.

    `declared`: whether the test module of the method must name the reason of each pair that it does not support.
    """
    shapes, expected = shapes_of_pair(name, pair, size), expectations(name)
    if reason := incompatibility(name, shapes):
        if not declared:
            return
        assert expected.unsupported, f"{name} does not support {pair} ({reason}): declare `unsupported`"
        assert expected.unsupported in reason, pair
        return
    versions = iter(range(100))
    teachers = [lambda arch=arch: outputs(arch, size, False, next(versions)) for arch in pair.teachers]
    teachers *= len(shapes.teachers)
    extra = {"random": teachers[0], "pruned": teachers[0], "self": lambda: outputs(pair.student, size, False, 0)}
    step = step_with(
        requirements(name), batch_of(4), lambda: outputs(pair.student, size, True, next(versions)), teachers, extra
    )
    before = [tensor._version for tensor in (*shared_tensors(step), *student_tensors(step))]
    method = construct(name, {}, shapes)
    terms = all_terms(method, step)
    assert all(term.isfinite() for term in terms.values()), pair
    torch.stack(list(teacher_terms(name, terms).values())).sum().backward()
    with torch.no_grad():
        method.after_backward(step)
    reached = [tensor.grad for tensor in student_tensors(step) if tensor.grad is not None]
    assert any(gradient.any() for gradient in reached), pair
    trained = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in reached + trained), pair
    assert [tensor._version for tensor in (*shared_tensors(step), *student_tensors(step))] == before, pair


@every_method
def test_one_step(name: str) -> None:
    for pair, size in DIGITS + FEW:
        check_one_step(name, pair, size)


TIMM = [
    Pair((f"timm/{teacher}",), f"timm/{student}")
    for teacher, student in (
        ("resnet34", "resnet18"),
        ("resnet18", "mobilenetv3_small_100"),
        ("vit_tiny_patch16_224", "resnet18"),
        ("convnext_atto", "vit_tiny_patch16_224"),
    )
]


@pytest.mark.slow
@every_method
def test_one_step_on_timm_pairs(name: str) -> None:
    for pair in TIMM:
        check_one_step(name, pair, 64, declared=False)


@pytest.mark.slow
@every_method
def test_one_step_on_every_pair(name: str) -> None:
    for pair, size in PAPER:
        check_one_step(name, pair, size)


def test_no_gradient_leads_to_the_teacher() -> None:
    """Its outputs, as the trainer gives them to every method, are not part of a graph."""
    teacher = Teacher(build("wrn_16_1", CLASSES, 8), "wrn_16_1", torch.device("cpu"), "fp32")
    batch = replace(batch_of(2), images=torch.randn(2, 3, 8, 8))
    output = teacher(batch, pre_activations=True, classifier=True)
    assert output.classifier is not None
    assert not any(tensor.requires_grad for tensor in (*output.tensors(), output.classifier[0]))
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@every_method
def test_the_teacher_matters(name: str) -> None:
    """Another teacher gives another loss, in each stage that has one; to methods without a teacher it means nothing."""
    shapes = supported(name)[0]
    step = random_step(name, shapes, torch.Generator().manual_seed(2))
    steps = step, convert_teachers(step, lambda tensor: tensor.flip(0) * 1.5)
    losses: list[dict[str, float]] = []
    for given in steps:
        stages = {"pretraining": 0.0, "main": 0.0}
        for term, value in teacher_terms(name, all_terms(construct(name, {}, shapes), given)).items():
            stages["pretraining" if term.startswith("pretraining ") else "main"] += value.item()
        losses.append(stages)
    assert any(losses[0].values())
    if not (requirements(name).min_teachers or requirements(name).extra_teachers):
        assert losses[0] == losses[1]
        return
    for stage, loss in losses[0].items():
        assert loss != losses[1][stage] or loss == 0, stage


# Odd inputs.


@every_method
@pytest.mark.parametrize("case", ["two images", "one class", "large", "zeros"])
def test_odd_batches_stay_finite(name: str, case: str) -> None:
    count = 2 if case == "two images" else 8
    batch = batch_of(count, labels=torch.zeros(count, dtype=torch.int64) if case == "one class" else None)
    stream, scale = torch.Generator().manual_seed(2), {"large": 6e4, "zeros": 0.0}.get(case, 1.0)
    choices = supported(name)
    for shapes in {id(choice): choice for choice in (choices[0], choices[-1])}.values():  # equal and unequal shapes
        method = construct(name, {}, shapes)
        for epoch in (1, EPOCHS):  # the second time, memories hold what the first has left
            step = random_step(name, shapes, stream, batch=batch, scale=scale, epoch=epoch)
            terms = all_terms(method, step)
            assert all(term.isfinite() for term in terms.values()), values(terms)
            torch.stack(list(terms.values())).sum().backward()
            with torch.no_grad():
                method.after_backward(step)
            for tensor in (*student_tensors(step), *method.parameters()):
                assert tensor.grad is None or tensor.grad.isfinite().all()
            assert all(buffer.isfinite().all() for buffer in method.buffers())


@every_method
def test_terms_are_as_precise_as_the_outputs(name: str) -> None:
    shapes = supported(name)[0]
    step = random_step(name, shapes, torch.Generator().manual_seed(2))
    terms = all_terms(construct(name, {}, shapes, torch.float64), convert_all(step, Tensor.double))
    assert {term: value.dtype for term, value in terms.items()} == dict.fromkeys(terms, torch.float64)


@every_method
def test_parameters_and_buffers_are_all_that_a_method_remembers(name: str) -> None:
    """Interrupted after a step and resumed from them, it returns the same terms."""
    shapes, stream = supported(name)[0], torch.Generator().manual_seed(2)
    first, second = (random_step(name, shapes, stream) for _ in range(2))
    method, resumed = construct(name, {}, shapes), construct(name, {}, shapes, seed=1)
    all_terms(method, first)
    with torch.no_grad():
        method.after_backward(first)
    resumed.load_state_dict(method.state_dict())
    resumed.generator.set_state(method.generator.get_state())
    assert values(all_terms(resumed, second)) == values(all_terms(method, second))


# Settings.


def other_value(name: str, setting: str, value: Value, expected: Expectations) -> Value:
    """A value of a setting that the method accepts and that differs from the given one."""
    candidates: tuple[Value, ...]
    if setting in expected.effective:
        candidates = (expected.effective[setting],)
    elif isinstance(value, bool):
        candidates = (not value,)
    elif isinstance(value, int):
        candidates = (value // 2, value - 1, value + 1)
    elif isinstance(value, float):
        candidates = (value * 0.9 + (0.05 if not value else 0.0), value * 1.1)
    else:
        candidates = ()
    check = registry.infos()[name].check
    for candidate in candidates:
        if candidate != value and check({setting: candidate}) is None:
            return candidate
    pytest.fail(f"give {setting!r} of {name} another value: Expectations(effective={{{setting!r}: ...}})")


@pytest.mark.parametrize("name", [name for name in METHODS if name != VANILLA])
def test_every_setting_has_an_effect(name: str) -> None:
    """Changed alone, with all weights above 0, it changes a term of the first steps, or the initial state."""
    shapes, stream, expected = supported(name)[0], torch.Generator().manual_seed(3), expectations(name)
    base: dict[str, Value] = {"ce_weight": 1.0, "kd_weight": 1.0}
    epochs = (1, EPOCHS // 2, EPOCHS)

    def trace(settings: dict[str, Value]) -> list[float | str]:
        stream.manual_seed(3)
        steps = [random_step(name, shapes, stream, settings=settings, epoch=epoch) for epoch in epochs]
        method = construct(name, settings, shapes)
        numbers: list[float | str] = [float(tensor.double().abs().sum()) for tensor in method.state_dict().values()]
        with torch.no_grad():
            for step in steps:
                numbers += values(all_terms(method, step)).values()
                method.after_backward(step)
        required = requirements(name, settings)
        return [*numbers, *map(str, required.views), *required.extra_teachers]

    before = trace(base)
    for setting in registry.infos()[name].settings:
        changed = other_value(name, setting.name, base.get(setting.name, setting.default), expected)
        same = trace({**base, setting.name: changed}) == before
        declared = setting.name in expected.without_effect
        assert not same or declared, (
            f"the setting {setting.name!r} changes nothing: use it, or declare "
            f"Expectations(without_effect={{{setting.name!r}: WHY}})"
        )
        assert same or not declared, f"the setting {setting.name!r} has an effect, and without_effect denies it"


@every_method
def test_impossible_settings_are_refused(name: str) -> None:
    info = registry.infos()[name]
    assert info.check({}) is None
    weights = [setting.name for setting in info.settings if setting.name.endswith("_weight")]
    refused: list[dict[str, Value]] = [{"no_such_setting": 1.0}, {"kd_temperature": 0.0}]
    refused += [{weight: bad} for weight in weights for bad in (-1.0, float("nan"), float("inf"))]
    for settings in [*refused, *expectations(name).refused]:
        assert info.check(settings) is not None, settings


@every_method
def test_published_settings_are_accepted(name: str) -> None:
    """They are for pairs of our architectures, and the method's settings may be so."""
    info = registry.infos()[name]
    for entry in info.published:
        assert entry.source
        assert entry.pairs
        for pair, settings in entry.pairs.items():
            teacher, student = pair.split(":")
            assert {teacher, student} <= set(models.names()), pair
            assert info.check({**entry.given, **settings}) is None, pair
        assert len({frozenset(settings) for settings in entry.pairs.values()}) == 1, "name the same settings for all"


@every_method
def test_settings_say_what_they_are_and_what_may_be_searched(name: str) -> None:
    """Every setting has a help text; a range contains the default, and its ends are accepted."""
    info = registry.infos()[name]
    for setting in info.settings:
        assert setting.help, setting.name
        if setting.range is not None:
            assert not isinstance(setting.default, bool | str), setting.name
            assert setting.range.low <= setting.default <= setting.range.high, setting.name
            for end in (setting.range.low, setting.range.high):
                assert info.check({setting.name: type(setting.default)(end)}) is None, setting.name
