"""Distillers and training steps for tests of methods: by hand, or at random for whatever a method requires."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdbench.core.trial import Pair, Value
from kdbench.data.views import MIXED
from kdbench.distill import Batch, Context, Distiller, Output, Requires, Shapes, Step, ViewStep, registry
from kdbench.distill.objective import objective
from kdbench.models import FeatureShapes, features, info

CLASSES, IMAGES = 10, 24
EPOCHS = 240

# By hand.


def make(
    name: str, settings: Mapping[str, Value], *, student: int, teacher: int, labels: Tensor, dtype: torch.dtype
) -> Any:
    """A distiller for embeddings of these dimensions, without feature maps."""
    sides = FeatureShapes((), False, student), FeatureShapes((), False, teacher)
    return construct(name, settings, Shapes(sides[0], (sides[1],), int(labels.max()) + 1, labels), dtype)


def output_with_embedding(embedding: Tensor) -> Output:
    """An output with this embedding [B, D], two zero logits and no feature maps."""
    return Output(embedding.new_zeros(len(embedding), 2), (), embedding)


def batch_of(size: int, indices: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    """A batch without pixels; labels and indices count from 0 unless given."""
    rows = torch.arange(size)
    return Batch(torch.empty(size, 0), rows if labels is None else labels, rows if indices is None else indices)


def tensor(*rows: Any) -> Tensor:
    """A float64 tensor of nested lists, one for each image."""
    return torch.tensor(rows, dtype=torch.float64)


def output_with_feature_maps(*feature_maps: Tensor) -> Output:
    """An output with these feature maps, the stem's first, which also stand before the activation."""
    zeros = feature_maps[0].new_zeros(len(feature_maps[0]), 2)
    return Output(zeros, feature_maps, zeros, feature_maps)


def step_of(student: Output, *teachers: Output, batch: Batch | None = None) -> Step:
    """A step of these outputs."""
    return Step(batch or batch_of(len(student.logits)), student, teachers, epoch=1, epochs=EPOCHS)


def make_for(name: str, settings: Mapping[str, Value], step: Step, labels: Tensor | None = None) -> Any:
    """A float64 distiller for the shapes of a step's outputs; `labels` are those of the training split."""
    student, *teachers = (_shapes_of(output) for output in (step.student, *step.teachers))
    labels = step.batch.labels if labels is None else labels
    shapes = Shapes(student, tuple(teachers), step.student.logits.shape[1], labels)
    return construct(name, settings, shapes, torch.float64)


def _shapes_of(output: Output) -> FeatureShapes:
    maps = tuple((m.shape[1], m.shape[2], m.shape[3]) for m in output.feature_maps)
    return FeatureShapes(maps, output.pre_activations is not None, output.embedding.shape[1])


# For every method.


def requirements(name: str, settings: Mapping[str, Value] | None = None) -> Requires:
    return registry.requirements(name, settings or {})


def shapes_of_pair(name: str, pair: Pair, size: int) -> Shapes:
    """The pair as the method meets it; its teacher is repeated for methods that need several."""
    student = features(pair.student, CLASSES, size)
    teachers = tuple(features(arch, CLASSES, size) for arch in pair.teachers)
    teachers *= max(1, requirements(name).min_teachers)
    return Shapes(student, teachers, CLASSES, torch.arange(IMAGES) % CLASSES, info(pair.student).family)


def incompatibility(name: str, shapes: Shapes) -> str | None:
    """As `registry.incompatibility`, but what `supports` raises is raised."""
    hyper = registry.hyper_of(name, {})
    method = registry.distiller(name)
    return registry.missing(method.requires(hyper), shapes) or method.supports(hyper, shapes)


def construct(
    name: str, settings: Mapping[str, Value], shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Distiller[Any]:
    """The distiller in train mode, with random tensors for what it requires of the teacher in advance."""
    registry.discover()
    torch.manual_seed(seed)
    method, hyper = registry.distiller(name), registry.hyper_of(name, settings)
    teacher_info = _teacher_info(method.requires(hyper), shapes)
    context = Context(**vars(shapes), generator=torch.Generator().manual_seed(seed), **teacher_info)
    return method(hyper, context).to(dtype).train()


def _teacher_info(requires: Requires, shapes: Shapes) -> dict[str, Any]:
    """The fields of `Context` that a method requires."""
    stream = torch.Generator().manual_seed(9)
    dimensions, channels = shapes.teacher.embedding_dim, [shape[0] for shape in shapes.teacher.feature_maps[1:]]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream)

    teacher_info: dict[str, Any] = {}
    if requires.classifier:
        teacher_info["teacher_classifier"] = (random(shapes.classes, dimensions), random(shapes.classes))
    if requires.teacher_embeddings:
        teacher_info["teacher_embeddings"] = random(len(shapes.labels), dimensions)
    if requires.teacher_class_means:
        teacher_info["teacher_class_means"] = random(shapes.classes, dimensions)
    if requires.teacher_batch_norms:
        teacher_info["teacher_batch_norms"] = tuple((random(count).abs() + 0.1, random(count)) for count in channels)
    return teacher_info


def random_output(shapes: FeatureShapes, count: int, stream: torch.Generator, *, scale: float = 1.0) -> Output:
    """Normally distributed tensors of a network's shapes, for `count` images."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream) * scale

    maps, before = (tuple(random(count, *shape) for shape in shapes.feature_maps) for _ in range(2))
    classifier = random(CLASSES, shapes.embedding_dim), random(CLASSES)
    last_map = random(count, *shapes.last_map) if shapes.last_map else None
    return Output(random(count, CLASSES), maps, random(count, shapes.embedding_dim), before, classifier, last_map)


def random_step(
    name: str,
    shapes: Shapes,
    stream: torch.Generator,
    *,
    settings: Mapping[str, Value] | None = None,
    batch: Batch | None = None,
    scale: float = 1.0,
    epoch: int = EPOCHS // 2,
) -> Step:
    """A step of random outputs, with what the method requires."""
    batch = batch or batch_of(8)

    def outputs(network: FeatureShapes) -> Callable[[], Output]:
        return lambda: random_output(network, len(batch.labels), stream, scale=scale)

    extra = {"self": outputs(shapes.student), "random": outputs(shapes.teacher), "pruned": outputs(shapes.teacher)}
    teachers = [outputs(teacher) for teacher in shapes.teachers]
    return step_with(requirements(name, settings), batch, outputs(shapes.student), teachers, extra, epoch=epoch)


def step_with(
    requires: Requires,
    batch: Batch,
    student: Callable[[], Output],
    teachers: Sequence[Callable[[], Output]],
    extra: Mapping[str, Callable[[], Output]],
    *,
    epoch: int = EPOCHS // 2,
) -> Step:
    """A step with what a method requires and nothing else, as the trainer makes it.

    The networks are called once for the batch and once for each view. The student's tensors are leaves with a gradient.
    """
    count = len(batch.labels)

    def teacher_outputs() -> tuple[Output, ...]:
        return tuple(_requested(teacher(), requires) for teacher in teachers)

    def student_output() -> Output:
        output = _requested(student(), requires).convert(_leaf).materialize()
        weight, bias = output.classifier or (None, None)
        live = None if weight is None else (_leaf(weight), None if bias is None else _leaf(bias))
        return replace(output, classifier=live)

    views = {}
    for view in requires.views:
        mixed = view.name in MIXED
        partner = torch.arange(count).flip(0) if mixed else None
        lam = torch.full((count,), 0.7) if mixed else None
        views[view.name] = ViewStep(batch, student_output(), teacher_outputs(), partner, lam)
    extra_outputs = {name: _requested(extra[name](), requires) for name in requires.extra_teachers}
    return Step(batch, student_output(), teacher_outputs(), epoch, EPOCHS, views, extra_outputs)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _requested(output: Output, requires: Requires) -> Output:
    """Without what only other methods ask for."""
    return replace(
        output,
        pre_activations=output.pre_activations if requires.pre_activations else None,
        classifier=output.classifier if requires.classifier else None,
        last_map=output.last_map if requires.last_map else None,
    )


def convert_teachers(step: Step, convert: Callable[[Tensor], Tensor]) -> Step:
    """The same step for the student, with every other network's tensors converted."""

    def converted(outputs: Sequence[Output]) -> tuple[Output, ...]:
        return tuple(convert_output(output, convert) for output in outputs)

    views = {name: replace(view, teachers=converted(view.teachers)) for name, view in step.views.items()}
    extra = {name: convert_output(output, convert) for name, output in step.extra.items()}
    return replace(step, teachers=converted(step.teachers), views=views, extra=extra)


def convert_all(step: Step, convert: Callable[[Tensor], Tensor]) -> Step:
    """The step with every network's tensors converted; the student's are leaves again."""
    step = convert_teachers(step, convert)

    def student(output: Output) -> Output:
        return convert_output(convert_output(output, convert), _leaf)

    views = {name: replace(view, student=student(view.student)) for name, view in step.views.items()}
    return replace(step, student=student(step.student), views=views)


def convert_output(output: Output, convert: Callable[[Tensor], Tensor]) -> Output:
    """The output with all its tensors converted, the classifier's too."""
    classifier = output.classifier
    if classifier is not None:
        weight, bias = classifier
        classifier = convert(weight), None if bias is None else convert(bias)
    return replace(output.convert(convert).materialize(), classifier=classifier)


def student_tensors(step: Step) -> list[Tensor]:
    """All tensors of the student's outputs."""
    outputs = [step.student, *(view.student for view in step.views.values())]
    return [value for output in outputs for value in output.tensors()]


def shared_tensors(step: Step) -> list[Tensor]:
    """What all students of a cohort read: batches, and the outputs of the other networks."""
    outputs = [*step.teachers, *step.extra.values(), *(out for view in step.views.values() for out in view.teachers)]
    batches = [step.batch, *(view.batch for view in step.views.values())]
    tensors = [value for batch in batches for value in batch.tensors()]
    return tensors + [value for output in outputs for value in output.tensors()]


def all_terms(method: Distiller[Any], step: Step) -> dict[str, Tensor]:
    """The terms of the pretraining, if there is one, as `pretraining NAME`, and those of a step."""
    terms = method.pretraining_losses(step) if method.pretraining() else {}
    return {**{f"pretraining {name}": term for name, term in terms.items()}, **objective(method, step)}


def values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}
