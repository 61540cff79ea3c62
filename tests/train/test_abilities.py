"""What a method may ask for, each ability shown by a small method: alone, in a cohort, stopped and resumed.

Methods that ask for nothing must train as if nobody else asked either, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.core.record import Outcome
from kdbench.data.dataset import Batch
from kdbench.data.resident import ResidentLoader
from kdbench.distill import (
    Context,
    Distiller,
    Hyper,
    Output,
    Requires,
    Step,
    View,
    ViewStep,
    register,
    registry,
    soft_kl,
)
from kdbench.distill.distiller import Deployment
from kdbench.models import build, classifier_of
from kdbench.train.student import Student
from kdbench.train.teacher import Teacher, Teachers, class_means
from tests.train import tiny_study
from tests.train.tiny_study import DATASET, equal, train, trial

PAIR_OF_TEACHERS = "resnet14+wrn_16_1"


class _Views(Distiller[Hyper]):
    """All four views at once, with draws of its own."""

    @classmethod
    def requires(cls, hyper: Hyper) -> Requires:
        return Requires(views=(View("crop"), View("strong"), View("mixup", alpha=0.2), View("cutmix")))

    def losses(self, step: Step) -> dict[str, Tensor]:
        noise = torch.rand((), generator=self.generator)
        terms = {name: noise * soft_kl(v.student.logits, v.teacher.logits, 4.0) for name, v in step.views.items()}
        mixup = step.views["mixup"]
        assert mixup.lam is not None
        assert mixup.partner is not None
        losses = F.cross_entropy(mixup.student.logits, step.batch.labels, reduction="none") * mixup.lam
        return {**terms, "labels": losses.mean()}


@dataclass(frozen=True)
class _ViewHyper(Hyper):
    alpha: float = 1.0


class _Mixup(Distiller[_ViewHyper]):
    """A view whose parameters are settings."""

    @classmethod
    def requires(cls, hyper: _ViewHyper) -> Requires:
        return Requires(views=(View("mixup", alpha=hyper.alpha),))

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"mixup": soft_kl(step.views["mixup"].student.logits, step.views["mixup"].teacher.logits, 1.0)}


class _TeacherClassifier(Distiller[Hyper]):
    """Predicts with the teacher's classifier on a projected embedding; its own projector has dropout."""

    weight: Tensor
    bias: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        assert context.teacher_classifier is not None
        weight, bias = context.teacher_classifier
        assert bias is not None
        self.projector = nn.Sequential(
            nn.Linear(context.student.embedding_dim, context.teacher.embedding_dim), nn.Dropout(0.5)
        )
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def requires(cls, hyper: Hyper) -> Requires:
        return Requires(classifier=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.student.classifier is not None
        assert step.teacher.classifier is not None
        assert step.student.classifier[0].requires_grad
        assert not step.teacher.classifier[0].requires_grad
        return {"match": F.mse_loss(self.projector(step.student.embedding), step.teacher.embedding)}

    def predict(self, student: Output) -> Tensor:
        return F.linear(self.projector(student.embedding), self.weight, self.bias)


class _TwoTeachers(Distiller[Hyper]):
    """Weights two teachers by their confidence."""

    @classmethod
    def requires(cls, hyper: Hyper) -> Requires:
        return Requires(min_teachers=2, max_teachers=2)

    def losses(self, step: Step) -> dict[str, Tensor]:
        first, second = step.teachers
        share = first.logits.softmax(dim=1).amax(dim=1).mean()
        logits = share * first.logits + (1 - share) * second.logits
        return {"mixture": soft_kl(step.student.logits, logits, 2.0)}


class _ExtraTeachers(Distiller[Hyper]):
    @classmethod
    def requires(cls, hyper: Hyper) -> Requires:
        return Requires(extra_teachers=("random", "self", "pruned"))

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {name: 0.1 * soft_kl(step.student.logits, extra.logits, 4.0) for name, extra in step.extra.items()}


class _TeacherStatistics(Distiller[Hyper]):
    """Reads everything that is known of the teacher before training."""

    means: Tensor
    memory: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        assert context.teacher_class_means is not None
        assert context.teacher_embeddings is not None
        assert context.teacher_batch_norms is not None
        self.projector = nn.Linear(context.student.embedding_dim, context.teacher.embedding_dim)
        self.register_buffer("means", context.teacher_class_means)
        self.register_buffer("memory", context.teacher_embeddings)
        self.margins = [bias - weight.abs() for weight, bias in context.teacher_batch_norms]

    @classmethod
    def requires(cls, hyper: Hyper) -> Requires:
        return Requires(
            teacher_embeddings=True, teacher_class_means=True, teacher_batch_norms=True, pre_activations=True
        )

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert step.teacher.pre_activations is not None
        embedding = self.projector(step.student.embedding)
        above = torch.max(step.teacher.pre_activations[-1], self.margins[-1][:, None, None]).mean()
        return {
            "means": F.mse_loss(embedding, self.means[step.batch.labels]),
            "memory": F.mse_loss(embedding, self.memory[step.batch.indices]) * (1 + above.abs()),
        }


class _WarmUp(Distiller[Hyper]):
    """A weight that grows on the published schedule of 240 epochs."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        weight = min(1.0, step.epoch_of(240) / 160)
        return {"warm_up": weight * soft_kl(step.student.logits, step.teacher.logits, 1.0)}


METHODS: dict[str, tuple[type[Distiller[Hyper]], type[Hyper]]] = {
    "t_views": (_Views, Hyper),
    "t_mixup": (_Mixup, _ViewHyper),  # type: ignore[dict-item]
    "t_classifier": (_TeacherClassifier, Hyper),
    "t_two": (_TwoTeachers, Hyper),
    "t_extra": (_ExtraTeachers, Hyper),
    "t_statistics": (_TeacherStatistics, Hyper),
    "t_warm_up": (_WarmUp, Hyper),
}


@pytest.fixture(autouse=True)
def abilities() -> Iterator[None]:
    for name, (cls, hyper) in METHODS.items():
        register(name, hyper, paper="-")(cls)
    yield
    for name in METHODS:
        del registry._METHODS[name]


class _StopEverySteps:
    """Asks for an end at every n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("expression", "teacher"),
    [
        ("t_views+kd", "wrn_16_1"),
        ("t_mixup(alpha=0.2)", "wrn_16_1"),
        ("t_classifier", "wrn_16_1"),
        ("t_two+kd", PAIR_OF_TEACHERS),
        ("t_extra", "wrn_16_1"),
        ("t_statistics", "wrn_16_1"),
        ("t_warm_up", "wrn_16_1"),
    ],
)
def test_the_same_alone_in_a_cohort_and_resumed(tmp_path: Path, expression: str, teacher: str) -> None:
    companion = trial("kd", teacher=teacher)
    together = train(tmp_path / "together", trial(expression, teacher=teacher), companion)
    key = f"{expression}/resnet8"
    assert together[key].status == "done", together[key].reason
    assert equal(together[key], train(tmp_path / "alone", trial(expression, teacher=teacher))[key])
    assert equal(together["kd/resnet8"], train(tmp_path / "kd", companion)["kd/resnet8"])
    resumed: dict[str, Outcome] = {}
    stops = 0
    while not resumed:
        stop = _StopEverySteps(3 + stops % 3)
        resumed = train(tmp_path / "parts", trial(expression, teacher=teacher), companion, stop=stop)
        stops += 1
    assert stops > 2
    assert equal(together[key], resumed[key])


def test_a_view_with_other_parameters_is_another_view(tmp_path: Path) -> None:
    names = ("t_mixup", "t_mixup(alpha=0.2)", "t_views")
    together = train(tmp_path / "together", *(trial(name) for name in names))
    for name in names:
        alone = train(tmp_path / name, trial(name))
        assert equal(together[f"{name}/resnet8"], alone[f"{name}/resnet8"])
    assert not equal(together["t_mixup/resnet8"], together["t_mixup(alpha=0.2)/resnet8"])


def test_what_nobody_asks_for_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[object] = []
    teachers: list[object] = []
    students: list[object] = []

    def count(log: list[object], function: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            log.append(args)
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(ResidentLoader, "view", count(views, ResidentLoader.view))
    monkeypatch.setattr(ResidentLoader, "training_images", count(teachers, ResidentLoader.training_images))
    monkeypatch.setattr(Student, "_forward", count(students, Student._forward))
    train(tmp_path / "plain", trial("kd"), trial("icd"))
    steps = 3 * 3  # epochs of three steps
    assert (len(views), len(teachers)) == (0, 0)
    plain_forwards = len(students)
    assert plain_forwards == 2 * (steps + 3)  # and a batch of test images after each epoch
    students.clear()
    train(tmp_path / "views", trial("kd"), trial("icd"), trial("t_views"))
    assert len(views) == 4 * steps  # once a cohort
    assert len(students) == plain_forwards + 5 * steps + 3  # the other students see the base batch alone


def test_the_teacher_is_asked_once_for_each_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Batch] = []
    original = Teacher._output

    def call(self: Teacher, network: nn.Module, batch: Batch, *requested: bool) -> Output:
        calls.append(batch)
        return original(self, network, batch, *requested)

    monkeypatch.setattr(Teacher, "_output", call)
    train(tmp_path, trial("t_views"), trial("t_views+kd"), trial("kd"))
    assert len(calls) == 1 + 9 * (1 + 4) + 1  # its accuracy, nine steps, and the metrics at the end


def test_the_kd_term_is_the_mean_over_teachers(tmp_path: Path) -> None:
    logits = torch.tensor([[1.0, 0.0]], requires_grad=True)
    outputs = [Output(torch.tensor([[value, 0.0]]), (), torch.zeros(1, 1)) for value in (2.0, -1.0)]
    from kdbench.distill.objective import mean_soft_kl

    alone = [soft_kl(logits, output.logits, 3.0) for output in outputs]
    assert mean_soft_kl(logits, tuple(outputs), 3.0) == (alone[0] + alone[1]) / 2
    both = train(tmp_path / "both", trial("kd", teacher=PAIR_OF_TEACHERS))["kd/resnet8"]
    singles = [train(tmp_path / name, trial("kd", teacher=name))["kd/resnet8"] for name in ("resnet14", "wrn_16_1")]
    assert not any(equal(both, single) for single in singles)
    assert both.teacher_top1 is not None


@pytest.mark.parametrize(
    ("expression", "teacher", "reason"),
    [
        ("icd", PAIR_OF_TEACHERS, "it is made for 1 teacher, and the pair has 2"),
        ("t_two", "wrn_16_1", "it needs at least 2 teachers, and the pair has 1"),
        ("kd", PAIR_OF_TEACHERS, None),
        ("t_two", PAIR_OF_TEACHERS, None),
    ],
)
def test_methods_fit_the_number_of_teachers(tmp_path: Path, expression: str, teacher: str, reason: str | None) -> None:
    outcome = train(tmp_path, trial(expression, teacher=teacher))[f"{expression}/resnet8"]
    assert outcome.status == ("failed" if reason else "done")
    assert (reason or "") in (outcome.reason or "")


def test_predictions_are_what_is_evaluated_and_deployed(tmp_path: Path) -> None:
    outcome = train(tmp_path, trial("t_classifier"))["t_classifier/resnet8"]
    assert outcome.weights is not None
    network = build("resnet8", DATASET.info.classes, DATASET.info.size)
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in outcome.weights.items() if name.startswith("network.")}
    )
    deploy = {name.removeprefix("deploy."): value for name, value in outcome.weights.items() if "deploy." in name}
    assert set(deploy) == {"projector.0.weight", "projector.0.bias", "weight", "bias"}
    loader = DATASET.loader(batch_size=64, pad=1, device=tiny_study.CPU, seed=0)
    (batch,) = loader.evaluation(500)
    with torch.no_grad():
        embedding = network.eval()(batch.images).embedding
        projected = F.linear(embedding, deploy["projector.0.weight"], deploy["projector.0.bias"])  # no dropout
        logits = F.linear(projected, deploy["weight"], deploy["bias"])
    top1 = 100 * (logits.argmax(dim=1) == batch.labels).double().mean().item()
    assert outcome.epochs[-1].top1 == pytest.approx(top1, abs=1e-9)
    student = sum(parameter.numel() for parameter in network.parameters())
    assert outcome.cost["deployed_parameters"] == student + deploy["projector.0.weight"].numel() + 64


def test_a_deployment_predicts_as_the_method_does() -> None:
    network = build("resnet8", 4, 8).eval()
    weight, bias = classifier_of(network)  # type: ignore[misc]

    class Doubles(Distiller[Hyper]):
        def predict(self, student: Output) -> Tensor:
            return 2 * student.logits

    from kdbench.models import features

    shapes = features("resnet8", 4, 8)
    context = Context(shapes, (shapes,), 4, torch.arange(8) % 4, generator=torch.Generator())
    plain, doubles = Distiller(Hyper(), context), Doubles(Hyper(), context)
    images = torch.randn(3, 3, 8, 8)
    assert plain.deploy(network) is network
    deployed = doubles.deploy(network)
    assert isinstance(deployed, Deployment)
    torch.testing.assert_close(deployed(images), 2 * network(images).logits)
    torch.testing.assert_close(network(images).logits, F.linear(network(images).embedding, weight, bias))


def test_extra_teachers_are_what_they_say() -> None:
    cohort = tiny_study.cohort(trial("t_extra"))
    weights = tiny_study.teacher_weights(cohort)
    teachers = Teachers(cohort, weights, tiny_study.CPU, ("random", "self", "pruned"))
    trained = teachers.teachers[0].network.state_dict()
    random, itself, pruned = (teachers.extra[name] for name in ("random", "self", "pruned"))
    assert (random.arch, itself.arch, pruned.arch) == ("wrn_16_1", "resnet8", "wrn_16_1")
    assert all(
        torch.equal(value, weights["trial:vanilla resnet8"][name])
        for name, value in itself.network.state_dict().items()
    )
    assert not torch.equal(random.network.state_dict()["fc.weight"], trained["fc.weight"])
    assert torch.equal(random.network.state_dict()["bn1.running_mean"], torch.zeros(64))
    prunable = [name for name, value in trained.items() if name.endswith("weight") and value.ndim in (2, 4)]
    flat = torch.cat([trained[name].flatten() for name in prunable])
    kept = torch.cat([pruned.network.state_dict()[name].flatten() for name in prunable])
    removed = kept == 0
    assert int(removed.sum()) == round(0.1 * len(flat))
    assert flat[removed].abs().max() <= flat[~removed].abs().min()
    assert torch.equal(kept[~removed], flat[~removed])
    again = Teachers(cohort, weights, tiny_study.CPU, ("random",)).extra["random"].network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in random.network.state_dict().items())
    other_seed = tiny_study.cohort(trial("t_extra", seed=1))
    other = Teachers(other_seed, weights, tiny_study.CPU, ("random",)).extra["random"].network.state_dict()
    assert not torch.equal(other["fc.weight"], random.network.state_dict()["fc.weight"])


def test_a_missing_extra_teacher_fails_its_trial_alone(tmp_path: Path) -> None:
    cohort = tiny_study.cohort(trial("t_extra"), trial("kd"))
    weights = tiny_study.teacher_weights(cohort)
    del weights["trial:vanilla resnet8"]
    outcomes = {outcome.trial.method: outcome for outcome in tiny_study.run_cohort(tmp_path, cohort, weights)}
    assert outcomes["kd"].status == "done"
    assert outcomes["t_extra"].status == "failed"
    assert "its extra teacher 'self' was not trained" in (outcomes["t_extra"].reason or "")


def test_statistics_of_the_teacher_are_those_of_clean_images() -> None:
    cohort = tiny_study.cohort(trial("kd"))
    teachers = Teachers(cohort, tiny_study.teacher_weights(cohort), tiny_study.CPU)
    loader = DATASET.loader(batch_size=64, pad=1, device=tiny_study.CPU, seed=0)
    embeddings = teachers.embeddings(loader, len(DATASET.labels))
    images = DATASET.train.images.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
    with torch.no_grad():
        expected = teachers.teachers[0].network(images).embedding
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    means = class_means(embeddings, DATASET.train.labels, 5)
    for label in range(4):
        torch.testing.assert_close(means[label], embeddings[DATASET.train.labels == label].mean(dim=0))
    assert torch.equal(means[4], torch.zeros(embeddings.shape[1]))  # a class without images
    norms = teachers.teachers[0].batch_norms
    assert norms is not None
    assert len(norms) == 3


def test_epochs_on_the_published_schedule() -> None:
    batch = Batch(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    output = Output(torch.zeros(1, 1), (), torch.zeros(1, 1))
    assert [Step(batch, output, (), epoch, 240).epoch_of(240) for epoch in (1, 240)] == [1.0, 240.0]
    assert [Step(batch, output, (), epoch, 6).epoch_of(240) for epoch in (1, 3, 6)] == [40.0, 120.0, 240.0]


def test_requirements_are_checked_where_they_are_declared() -> None:
    with pytest.raises(ValueError, match="requires a view once"):
        Requires(views=(View("mixup", alpha=1.0), View("mixup", alpha=2.0)))
    with pytest.raises(ValueError, match="no extra teacher stranger"):
        Requires(extra_teachers=("stranger",))


def test_a_view_step_shows_the_first_teacher() -> None:
    output = Output(torch.zeros(1, 1), (), torch.zeros(1, 1))
    second = Output(torch.ones(1, 1), (), torch.zeros(1, 1))
    batch = Batch(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))
    assert ViewStep(batch, output, (output, second)).teacher is output
    assert Step(batch, output, (output, second), 1, 1).teacher is output


def test_predictions_that_are_not_finite_end_their_trial_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They appear in evaluation only: no loss, gradient or weight shows them."""

    def predict(self: Any, student: Output) -> Tensor:
        logits = F.linear(self.projector(student.embedding), self.weight, self.bias)
        return logits if self.training else logits * float("nan")

    monkeypatch.setattr(_TeacherClassifier, "predict", predict)
    outcomes = train(tmp_path, trial("t_classifier"), trial("kd"))
    assert outcomes["kd/resnet8"].status == "done"
    failed = outcomes["t_classifier/resnet8"]
    assert (failed.status, failed.reason) == ("diverged", "the test logits were not finite after epoch 3")
