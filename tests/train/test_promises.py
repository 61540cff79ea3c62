"""A trial's result depends on nothing but the trial: not on companions, interruptions, or the failures of others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.core.record import Outcome
from kdbench.core.trial import CheckpointInterval
from kdbench.data.dataset import Split
from kdbench.distill import Context, Distiller, Hyper, Shapes, Step, register, registry
from kdbench.results import Store
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.student import Student
from tests.train import tiny_study
from tests.train.tiny_study import EPOCHS, Quiet, equal, train, trial

FOUR = ("ab+kd", "crd(nce_k=20)", "icd", "noisy+kd")


class _Noisy(Distiller[Hyper]):
    """Uses everything random that a method may: initial weights, dropout, its own generator."""

    steps: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        linear = nn.Linear(context.student.embedding_dim, context.teacher.embedding_dim)
        self.projector = nn.Sequential(nn.Dropout(0.5), linear)
        self.register_buffer("steps", torch.zeros(()))

    def losses(self, step: Step) -> dict[str, Tensor]:
        target = step.teacher.embedding + torch.randn(step.teacher.embedding.shape, generator=self.generator)
        return {"match": F.mse_loss(self.projector(step.student.embedding) + self.steps / 1000, target)}

    def after_backward(self, step: Step) -> None:
        self.steps += 1


class _Raises(Distiller[Hyper]):
    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.epoch == 2:
            raise RuntimeError("no such map")
        return {}


class _Explodes(Distiller[Hyper]):
    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.steps = 0

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.steps += step.epoch == 2
        logits = step.student.logits
        return {"fine": logits.mean() * 0, "ratio": logits.mean() / (0 if self.steps == 2 else 1e6)}


class _NonfiniteGradient(Distiller[Hyper]):
    """Its loss stays finite; its gradient does not."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"root": (step.student.logits * 0).abs().sqrt().sum()}


class _LaterNonfiniteGradient(Distiller[Hyper]):
    """As the one before, in the second step of the second epoch, and with a draw in each step."""

    steps: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.register_buffer("steps", torch.zeros(()))

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits
        noise = torch.rand(logits.shape, generator=self.generator) + 1
        shift = torch.where(self.steps == 4, 0.0, 1.0)
        return {"early": (logits * noise).square().mean(), "late": (logits * 0 + shift).sqrt().sum()}

    def after_backward(self, step: Step) -> None:
        self.steps += 1


class _ModifiesInputs(Distiller[Hyper]):
    """Changes in place what all students share."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.epoch == 2:
            step.teacher.logits.mul_(100)
            step.teacher.embedding.zero_()
        return {}


class _BadInfo(Distiller[Hyper]):
    def extra_info(self) -> dict[str, bool | int | float | str]:
        return {"accuracy": float("nan")}


class _SupportsRaises(Distiller[Hyper]):
    @classmethod
    def supports(cls, hyper: Hyper, shapes: Shapes) -> str | None:
        raise IndexError("no such stage")


class _InitRaises(Distiller[Hyper]):
    def __init__(self, hyper: Hyper, context: Context) -> None:
        raise TypeError("no teacher map fits")


@pytest.fixture(autouse=True)
def test_methods() -> Iterator[None]:
    methods: dict[str, type[Distiller[Hyper]]] = {
        "noisy": _Noisy,
        "raises": _Raises,
        "explodes": _Explodes,
        "nonfinite": _NonfiniteGradient,
        "later": _LaterNonfiniteGradient,
        "modifies": _ModifiesInputs,
        "bad_info": _BadInfo,
        "supports_raises": _SupportsRaises,
        "init_raises": _InitRaises,
    }
    for name, cls in methods.items():
        register(name, Hyper, paper="-")(cls)
    yield
    for name in methods:
        del registry._METHODS[name]


def test_a_trial_is_the_same_alone_and_in_a_cohort(tmp_path: Path) -> None:
    together = train(tmp_path / "together", *(trial(method) for method in FOUR))
    for number, method in enumerate(FOUR):
        alone = train(tmp_path / str(number), trial(method))
        assert equal(alone[f"{method}/resnet8"], together[f"{method}/resnet8"])
    assert len(
        {tuple(o.weights["network.fc.weight"].flatten().tolist()) for o in together.values() if o.weights}
    ) == len(FOUR)


def test_vanilla_networks_are_the_same_side_by_side(tmp_path: Path) -> None:
    archs = ("resnet8", "wrn_16_1")
    together = train(tmp_path / "together", *(trial("vanilla", arch=arch, teacher=None) for arch in archs))
    for arch in archs:
        alone = train(tmp_path / arch, trial("vanilla", arch=arch, teacher=None))
        assert equal(alone[f"vanilla/{arch}"], together[f"vanilla/{arch}"])


@pytest.mark.parametrize("stop_after", range(1, EPOCHS + 1))
def test_a_trial_is_the_same_when_killed_after_an_epoch_and_resumed(tmp_path: Path, stop_after: int) -> None:
    trials = [trial(method) for method in FOUR]
    whole = train(tmp_path / "whole", *trials)
    assert train(tmp_path / "parts", *trials, stop_after=stop_after) == {}
    observer = Quiet()
    resumed = train(tmp_path / "parts", *trials, observer=observer)
    assert observer.trained == [(epoch, len(FOUR)) for epoch in range(stop_after + 1, EPOCHS + 1)]
    for method in FOUR:
        assert equal(whole[f"{method}/resnet8"], resumed[f"{method}/resnet8"])


class _Countdown:
    """Asks for an end from the n-th question on."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_trial_is_the_same_when_stopped_within_epochs_and_resumed(tmp_path: Path) -> None:
    """Every few steps: in the first stage, in the main one, during evaluation."""
    trials = [trial(method) for method in FOUR]
    whole = train(tmp_path / "whole", *trials)
    stops = 0
    resumed: dict[str, Outcome] = {}
    while not resumed:
        resumed = train(tmp_path / "parts", *trials, stop=_Countdown(stops % 3))
        stops += 1
    assert stops > 8
    for method in FOUR:
        assert equal(whole[f"{method}/resnet8"], resumed[f"{method}/resnet8"])


def test_students_that_are_ahead_wait_for_a_new_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", trial("crd"), trial("noisy"))
    train(tmp_path / "parts", trial("noisy"), stop=_Countdown(6))  # one epoch of three steps, and one step
    resumed = train(tmp_path / "parts", trial("crd"), trial("noisy"))
    for method in ("crd", "noisy"):
        assert equal(whole[f"{method}/resnet8"], resumed[f"{method}/resnet8"])


@pytest.mark.parametrize(
    ("interval", "kept"),
    [(CheckpointInterval(2), 2), (CheckpointInterval(minutes=1e-9), 3), (CheckpointInterval(minutes=9), 0)],
)
def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path, interval: CheckpointInterval, kept: int) -> None:
    """A run that is killed after the third of four epochs."""
    now = replace(trial("kd"), recipe=replace(tiny_study.RECIPE, epochs=4))
    train(tmp_path, now, stop_after=3, interval=interval)
    again = Quiet()
    train(tmp_path, now, observer=again)
    assert again.trained[0] == (kept + 1, 1)


def test_a_cohort_that_does_not_fit_into_memory_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", *(trial(method) for method in FOUR))
    sizes: list[int] = []

    def step(self: Student, inputs: StepInputs) -> None:
        if self.current and self.current.epoch == 2 and self.steps == 1:
            living = sum(type(item) is Student for item in gc.get_objects())
            sizes.append(living)
            if living > 1 and (living > 2 or self.trial.base == "icd"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        original(self, inputs)

    original = Student.step
    monkeypatch.setattr(Student, "step", step)
    parts = train(tmp_path / "parts", *(trial(method) for method in FOUR))
    assert max(sizes) == 4
    for method in FOUR:
        assert equal(whole[f"{method}/resnet8"], parts[f"{method}/resnet8"])
    assert {o.cost["cohort_size"] for o in parts.values()} == {1, 2}
    assert {o.cost["split_from"] for o in parts.values()} == {4}


def test_a_student_that_does_not_fit_into_memory_alone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Student, inputs: StepInputs) -> None:
        if self.trial.base == "icd":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        original(self, inputs)

    original = Student.step
    monkeypatch.setattr(Student, "step", step)
    outcomes = train(tmp_path, trial("icd"), trial("kd"), trial("crd"))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "icd/resnet8": "failed",
        "kd/resnet8": "done",
        "crd/resnet8": "done",
    }
    assert outcomes["icd/resnet8"].reason == "out of memory, although it was trained alone"


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("explodes", "the loss was not finite from epoch 2, step 2 on (term: ratio)"),
        ("later+kd", "the gradient was not finite from epoch 2, step 2 on (term: late)"),
        ("nonfinite", "the gradient was not finite from epoch 1, step 1 on (term: root)"),
    ],
)
def test_the_nonfinite_term_is_named_with_its_epoch_and_step(tmp_path: Path, method: str, reason: str) -> None:
    outcomes = train(tmp_path, trial(method))[f"{method}/resnet8"]
    assert (outcomes.status, outcomes.reason) == ("diverged", reason)


def test_large_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def clip(self: Student, optimizer: torch.optim.Optimizer) -> Tensor:
        norm = original(self, optimizer)
        trained = [*self.network.parameters(), *self.distiller.parameters()]
        norms.append(torch.cat([each.grad.flatten() for each in trained if each.grad is not None]).norm().item())
        return norm

    original = Student._clip
    monkeypatch.setattr(Student, "_clip", clip)
    free = train(tmp_path / "free", trial("crd"))["crd/resnet8"]
    assert max(norms) > 0.5
    norms.clear()
    bound = replace(trial("crd"), recipe=replace(tiny_study.RECIPE, max_grad_norm=0.5))
    assert bound.fingerprint != trial("crd").fingerprint
    clipped = train(tmp_path / "clipped", bound)["crd/resnet8"]
    assert max(norms) == pytest.approx(0.5, rel=1e-5)
    assert not equal(free, clipped)


def test_a_new_method_joins_an_interrupted_cohort(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", trial("crd"), trial("icd"))
    train(tmp_path / "parts", trial("crd"), stop_after=2)
    observer = Quiet()
    resumed = train(tmp_path / "parts", trial("crd"), trial("icd"), observer=observer)
    assert observer.trained == [(1, 1), (2, 1), (3, 2)]  # the newcomer catches up alone
    for method in ("crd", "icd"):
        assert equal(whole[f"{method}/resnet8"], resumed[f"{method}/resnet8"])


def test_a_damaged_checkpoint_only_costs_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(tmp_path / "whole", trial("icd"))
    train(tmp_path / "parts", trial("icd"), stop_after=2)
    (path,) = (tmp_path / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert equal(whole["icd/resnet8"], train(tmp_path / "parts", trial("icd"))["icd/resnet8"])
    assert "is damaged" in caplog.text
    assert (tmp_path / "damaged" / path.name).stat().st_size == 1000


def test_seeds_differ(tmp_path: Path) -> None:
    first, second = (train(tmp_path / str(seed), trial("kd", seed=seed))["kd/resnet8"] for seed in (0, 1))
    assert not equal(first, second)


def test_failures_stay_with_their_method(tmp_path: Path) -> None:
    names = ("kd", "raises", "modifies", "explodes", "nonfinite", "init_raises", "bad_info", "supports_raises", "icd")
    outcomes = train(tmp_path / "mixed", *(trial(name) for name in names))
    status = {name: outcomes[f"{name}/resnet8"].status for name in names}
    assert status == {
        "kd": "done",
        "raises": "failed",
        "modifies": "failed",
        "bad_info": "failed",
        "supports_raises": "failed",
        "explodes": "diverged",
        "nonfinite": "diverged",
        "init_raises": "failed",
        "icd": "done",
    }
    reasons = {name: outcomes[f"{name}/resnet8"].reason or "" for name in names}
    assert reasons["raises"].startswith("epoch 2: RuntimeError: no such map (test_promises.py, line ")
    assert reasons["explodes"] == "the loss was not finite from epoch 2, step 2 on (term: ratio)"
    assert "epoch 1" in reasons["nonfinite"]
    assert "changed its batch or the teacher's output in place" in reasons["modifies"]
    assert "extra_info(): accuracy must be a finite number" in reasons["bad_info"]
    assert reasons["supports_raises"].startswith("before training: IndexError: no such stage")
    assert reasons["init_raises"].startswith("before training: TypeError: no teacher map fits (test_promises.py, line ")
    assert len(outcomes["explodes/resnet8"].epochs) == 1
    for name in ("kd", "icd"):
        alone = train(tmp_path / name, trial(name))[f"{name}/resnet8"]
        assert equal(alone, outcomes[f"{name}/resnet8"])


def test_an_outcome_holds_terms_accuracies_and_costs(tmp_path: Path) -> None:
    outcomes = train(tmp_path, trial("crd"), trial("icd+kd"))
    crd, icd = outcomes["crd/resnet8"], outcomes["icd+kd/resnet8"]
    assert crd.extra_info == {"negatives": 150}
    assert set(crd.epochs[0].terms) == {"ce", "nce_student", "nce_teacher"}
    assert set(icd.epochs[0].terms) == {"ce", "kd", "contrastive", "invariance"}
    assert [epoch.epoch for epoch in icd.epochs] == [1, 2, 3]
    assert icd.epochs[0].lr == 0.05
    assert icd.epochs[2].lr == pytest.approx(0.05 * 0.1)  # milestones of 3 epochs: 1.875, 2.25, 2.625
    assert icd.teacher_top1 is not None
    assert all(epoch.student_seconds > 0 and epoch.shared_seconds > 0 for epoch in icd.epochs)


def test_held_out_images_choose_an_epoch_and_are_not_trained_on(tmp_path: Path) -> None:
    whole = tiny_study.DATASET
    held = Split(whole.train.images[:40], whole.train.labels[:40])
    images = replace(whole, val=held, info=replace(whole.info, val=40))
    one = replace(tiny_study.trial("kd"), data=images.info)
    (outcome,) = tiny_study.run_cohort(tmp_path, tiny_study.cohort(one), dataset=images)
    assert all(epoch.val_top1 is not None for epoch in outcome.epochs)
    plain = tiny_study.train(tmp_path / "plain", tiny_study.trial("kd"))["kd/resnet8"]
    assert all(epoch.val_top1 is None for epoch in plain.epochs)
    assert [epoch.top1 for epoch in plain.epochs] == [epoch.top1 for epoch in outcome.epochs]  # it only looks
    record = Store(tmp_path / "out").save(outcome, {})
    best = max(outcome.epochs, key=lambda epoch: (epoch.val_top1 or 0.0, -epoch.epoch))
    assert (record.validated_epoch, record.validated_top1) == (best.epoch, best.top1)
    assert record.last10_top1 == pytest.approx(sum(epoch.top1 for epoch in outcome.epochs) / len(outcome.epochs))
