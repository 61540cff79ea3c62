"""The contract, over the registry: a new file is covered at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from kdbench.core.trial import VANILLA, Pair, Value
from kdbench.distill import Batch, Distiller, Output, Shapes, registry
from kdbench.distill.objective import objective
from kdbench.models import build, features, info
from kdbench.plan import pairs
from kdbench.train.teacher import Teacher
from tests.train import tiny_study

METHODS = sorted(set(registry.infos()) - {VANILLA})
FORMS: dict[str, list[dict[str, Value]]] = {"rrd": [{"form": "queue"}, {"form": "momentum"}]}
CLASSES, IMAGES, CPU = 10, 24, torch.device("cpu")


def shapes(pair: Pair, size: int) -> Shapes:
    own, target = (features(arch, CLASSES, size) for arch in (pair.student, pair.teacher))
    return Shapes(own, target, CLASSES, torch.arange(IMAGES) % CLASSES, info(pair.student).family)


def make(name: str, form: dict[str, Value], known: Shapes) -> Distiller[object]:  # type: ignore[type-var]
    torch.manual_seed(0)
    hyper = registry.hyper_of(name, form)
    return registry.distiller(name)(hyper, known, torch.Generator().manual_seed(0))


def batch(size: int, count: int = 8, one_class: bool = False) -> Batch:
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=stream)
    return Batch(
        images, torch.zeros(count, dtype=torch.int64) if one_class else torch.arange(count), torch.arange(count)
    )


def all_terms(method: Distiller[object], own: Output, target: Output, given: Batch) -> dict[str, Tensor]:  # type: ignore[type-var]
    """Of the pretraining, if there is one, and of a step."""
    terms = dict(method.pretraining_losses(own, target, given, 1)) if method.pretraining() else {}
    return {**{f"pretraining {name}": term for name, term in terms.items()}, **objective(method, own, target, given, 1)}


def total(terms: dict[str, Tensor]) -> Tensor:
    """Of what the method adds: without the labels' term."""
    return torch.stack([term for name, term in terms.items() if name != "ce"]).sum()


def seen_by(name: str, output: Output) -> Output:
    """As the harness gives it: with maps before the activation to those only who ask for them."""
    return output if registry.distiller(name).pre_activations else replace(output, pre_activations=None)


def tensors(output: Output) -> list[Tensor]:
    return [output.logits, output.embedding, *output.feature_maps, *(output.pre_activations or ())]


def served(name: str, size: int, chosen: tuple[Pair, ...]) -> Iterator[tuple[Pair, Shapes]]:
    for pair in chosen:
        known = shapes(pair, size)
        if not registry.distiller(name).supports(registry.hyper_of(name, {}), known):
            yield pair, known


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, int], torch.nn.Module]:
    found: dict[tuple[str, int], torch.nn.Module] = {}
    for source, size in (("cifar100", 32), ("digits", 8)):
        for pair in pairs.sets(source)["all"]:
            for arch in (pair.teacher, pair.student):
                torch.manual_seed(0)
                found.setdefault((arch, size), build(arch, CLASSES, size))
    return found


REFUSES = {"fsp": "compares matrices of channels by channels, which must be equally many"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("source", "size"), [("cifar100", 32), ("digits", 8)])
def test_one_step_on_every_pair(source: str, size: int, networks: dict[tuple[str, int], torch.nn.Module]) -> None:
    """Finite terms; gradients that reach the student without the labels' help; nothing shared is changed.

    The teacher cannot be reached: see the next test.
    """
    given = batch(size, 4)
    for pair in pairs.sets(source)["all"]:
        known = shapes(pair, size)
        teacher, student = networks[pair.teacher, size].eval(), networks[pair.student, size].train()
        with torch.no_grad():
            target = teacher(given.images, pre_activations=True)
        own = student(given.images, pre_activations=True)
        shared = [given.images, given.labels, given.indices, *tensors(target), *tensors(own)]
        before = [tensor._version for tensor in shared]
        for name in METHODS:
            for form in FORMS.get(name, [{}]):
                where = f"{name} {form} on {pair}"
                if registry.distiller(name).supports(registry.hyper_of(name, form), known):
                    assert name in REFUSES, where
                    continue
                method = make(name, form, known)
                terms = all_terms(method, seen_by(name, own), seen_by(name, target), given)
                assert all(term.isfinite() for term in terms.values()), where
                total(terms).backward(retain_graph=True)
                with torch.no_grad():
                    method.after_backward(given)
                gradients = [each.grad for each in student.parameters() if each.grad is not None]
                assert any(gradient.any() for gradient in gradients), where
                gradients += [each.grad for each in method.parameters() if each.grad is not None]
                assert all(gradient.isfinite().all() for gradient in gradients), where
                assert [tensor._version for tensor in shared] == before, where
                student.zero_grad(set_to_none=True)


def test_no_gradient_leads_to_the_teacher() -> None:
    """Its outputs, as the harness gives them to every method, are not part of a graph."""
    weights = dict(build("wrn_16_1", tiny_study.IMAGES.info.classes, 8).state_dict())
    guide = Teacher(tiny_study.cohort(tiny_study.trial("ab", teacher="wrn_16_1")), weights, CPU)
    assert guide.network is not None
    assert not any(tensor.requires_grad for tensor in tensors(guide(batch(8), pre_activations=True)))
    assert not any(parameter.requires_grad for parameter in guide.network.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_method_itself_teaches(name: str, networks: dict[tuple[str, int], torch.nn.Module]) -> None:
    """Another teacher gives another loss, of each stage that has one."""
    for form in FORMS.get(name, [{}]):
        pair, known = next(served(name, 8, pairs.sets("digits")["all"]))
        given = batch(8)
        with torch.no_grad():
            own = seen_by(name, networks[pair.student, 8].train()(given.images, pre_activations=True))
            target = seen_by(name, networks[pair.teacher, 8].eval()(given.images, pre_activations=True))
        values: list[dict[bool, float]] = []
        for seen in (target, target.convert(lambda tensor: tensor.flip(0) * 1.5)):
            stages = dict.fromkeys((True, False), 0.0)
            for term, value in all_terms(make(name, form, known), own, seen, given).items():
                stages[term.startswith("pretraining ")] += 0.0 if term == "ce" else value.item()
            values.append(stages)
        assert any(values[0].values())
        for stage, first in values[0].items():
            assert first != values[1][stage] or first == 0, "pretraining" if stage else "main"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", ["two images", "one class", "large", "zeros"])
def test_odd_batches_stay_finite(name: str, case: str) -> None:
    found = [known for _, known in served(name, 8, pairs.sets("digits")["all"])]
    count = 2 if case == "two images" else 8
    given = batch(8, count, one_class=case == "one class")
    stream = torch.Generator().manual_seed(2)

    def output(known: Shapes, side: str) -> Output:
        of = known.student if side == "student" else known.teacher
        scale = {"large": 6e4, "zeros": 0.0}.get(case, 1.0)
        make = lambda *shape: (torch.randn(count, *shape, generator=stream) * scale).requires_grad_(side == "student")  # noqa: E731
        maps = tuple(make(*shape) for shape in of.feature_maps)
        return Output(make(CLASSES), maps, make(of.embedding), tuple(make(*shape) for shape in of.feature_maps))

    for form, known in product(FORMS.get(name, [{}]), (found[0], found[-1])):  # equal and unequal shapes
        method = make(name, form, known)
        for _ in range(2):  # the second time, memories hold what the first has left
            own, target = output(known, "student"), output(known, "teacher")
            terms = all_terms(method, own, target, given)
            assert all(term.isfinite() for term in terms.values()), (form, terms)
            torch.stack(list(terms.values())).sum().backward()
            with torch.no_grad():
                method.after_backward(given)
            for each in (*tensors(own), *method.parameters()):
                assert each.grad is None or each.grad.isfinite().all(), form
            assert all(each.isfinite().all() for each in method.buffers()), form


INERT = {
    ("rrd", "queue", "nce_t"): "belongs to the momentum form",
    ("rrd", "queue", "nce_m"): "belongs to the momentum form",
}


TELLING: dict[str, Value] = {
    "nce_k": 5,
    "max_tau": 1.0,  # a bound acts only when it is reached
    "nce_t_t": 0.5,  # near 0.02 a teacher's own row outweighs a queue of noise beyond float32
}


@pytest.mark.parametrize(("name", "form"), [(name, form) for name in METHODS for form in FORMS.get(name, [{}])])
def test_every_setting_does_something(name: str, form: dict[str, Value]) -> None:
    """Changed alone, with all weights non-zero, it changes a term of the first two calls, or the initial state."""
    _, known = next(served(name, 8, pairs.sets("digits")["all"]))
    stream = torch.Generator().manual_seed(3)

    def output(of_teacher: bool) -> Output:
        of = known.teacher if of_teacher else known.student
        draw = lambda *shape: torch.randn(8, *shape, generator=stream)  # noqa: E731
        maps = tuple(draw(*shape) for shape in of.feature_maps)
        return Output(draw(CLASSES), maps, draw(of.embedding), tuple(draw(*shape) for shape in of.feature_maps))

    calls = [(output(False), output(True)) for _ in range(2)]
    base: dict[str, Value] = {"ce_weight": 1.0, "kd_weight": 1.0, **form}

    def trace(settings: dict[str, Value]) -> list[float]:
        method = make(name, settings, known)
        seen = [float(tensor.double().abs().sum()) for tensor in method.state_dict().values()]
        for own, target in calls:
            terms = all_terms(method, own, target, batch(8))
            seen += [term.item() for term in terms.values()]
            method.after_backward(batch(8))
        return seen

    before = trace(base)
    for setting in registry.infos()[name].settings:
        value = base.get(setting.name, setting.default)
        changed: Value
        if setting.name in form:
            changed = next(other for each in FORMS[name] if (other := each[setting.name]) != value)
        elif setting.name in TELLING:
            changed = TELLING[setting.name]
        elif setting.kind == "bool":
            changed = not value
        elif setting.kind == "int":
            changed = max(1, int(value) // 2) if int(value) > 2 else int(value) - 1
        else:
            changed = float(value) * 0.9 + (0.05 if not value else 0.0)
        same = trace({**base, setting.name: changed}) == before
        assert same == ((name, *form.values(), setting.name) in INERT), setting.name
