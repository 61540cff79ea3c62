"""Recorded steps must train as plain ones do, to the bit; recording is emulated on the CPU (`emulated.py`)."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.core.record import Outcome
from kdbench.core.trial import VANILLA, Trial
from kdbench.data.dataset import Batch
from kdbench.distill import Context, Distiller, Hyper, Shapes, Step, registry
from kdbench.models import features, info
from kdbench.train import cohort as cohort_module
from kdbench.train import inputs_ahead, measure_costs, recorded_step
from kdbench.train.cuda_graph import Plain, Stream, accelerator
from kdbench.train.gpu_lint import Waits
from kdbench.train.inputs_ahead import SLOTS
from kdbench.train.recorded_step import WARM_UP, RecordedStep, Work
from kdbench.train.student import Student
from kdbench.train.teacher import Teacher
from tests.methods.expectations import METHODS
from tests.train import tiny_study
from tests.train.emulated import Emulated, Race
from tests.train.tiny_study import CPU, Quiet, equal

STEPS, EPOCHS = 4, 2
DATASET = tiny_study.dataset(train=8 * STEPS, test=8)
RECIPE = replace(tiny_study.RECIPE, batch_size=8, epochs=EPOCHS, milestones=(1.0,))  # the rate drops before epoch 2

REFUSED = {
    "kdsvd": "_linalg_eigh",
}
"""Methods whose step waits for the device, with the operation that waits."""


@pytest.fixture(autouse=True)
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed steps run alone only once, to be timed, and not for 21 times."""
    for module in (recorded_step, inputs_ahead):
        monkeypatch.setattr(module, "TIMED_STEPS", 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Which is faster for tensors of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trial(expression: str, **options: Any) -> Trial:
    return replace(tiny_study.trial(expression, **options), recipe=RECIPE, data=DATASET.info)


def trials(teacher: str = "wrn_16_1", student: str = "resnet8") -> list[Trial]:
    """Of all methods that support these networks."""
    sides = (features(arch, DATASET.info.classes, DATASET.info.size) for arch in (student, *teacher.split("+")))
    own, *others = sides
    shapes = Shapes(own, tuple(others), DATASET.info.classes, DATASET.labels, info(student).family)
    names = [name for name in METHODS if name != VANILLA and not registry.incompatibility(name, {}, shapes)]
    return [trial(name, arch=student, teacher=teacher) for name in names]


def train(folder: Path, on: Emulated, *trials: Trial, stop: Callable[[], bool] = lambda: False) -> dict[str, Outcome]:
    """Outcomes by method of a cohort whose steps run on this accelerator."""
    with pytest.MonkeyPatch.context() as patch, on:
        patch.setattr(cohort_module, "accelerator", lambda device, steps: on)
        return _outcomes(folder, *trials, stop=stop)


_PLAIN: dict[str, dict[str, Outcome]] = {}


def plain(*trials: Trial) -> dict[str, Outcome]:
    """The same in plain steps. A dispatch mode alone, which recording needs, changes who owns a gradient, and so the
    layout that is summed in; hence one that does nothing.
    """
    key = " ".join(trial.fingerprint for trial in trials)
    if key not in _PLAIN:
        with TemporaryDirectory() as folder, Waits():
            _PLAIN[key] = _outcomes(Path(folder), *trials)
    return _PLAIN[key]


def _outcomes(folder: Path, *trials: Trial, stop: Callable[[], bool] = lambda: False) -> dict[str, Outcome]:
    observer = Quiet()
    tiny_study.run_cohort(folder, tiny_study.cohort(*trials), dataset=DATASET, observer=observer, stop=stop)
    return {outcome.trial.method: outcome for outcome in observer.outcomes}


def different(outcomes: dict[str, Outcome], *trials: Trial) -> list[str]:
    """Methods that did not train as in plain steps."""
    expected = plain(*trials)
    assert outcomes.keys() == expected.keys()
    return [name for name in expected if not same(outcomes[name], expected[name])]


def same(left: Outcome, right: Outcome) -> bool:
    """Bit for bit, failures included."""
    if left.status != "done" or right.status != "done":
        return (left.status, left.reason) == (right.status, right.reason)
    return equal(left, right)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "without a CUDA graph" in record.getMessage()]


GROUPS = 6


@pytest.mark.parametrize("part", range(GROUPS))
def test_every_method_trains_as_in_plain_steps(tmp_path: Path, part: int, caplog: pytest.LogCaptureFixture) -> None:
    """Both stages, across a drop of the rate; the streams' work is interleaved at random."""
    some = trials()[part::GROUPS]
    emulated = Emulated(part)
    recorded = train(tmp_path, emulated, *some)
    assert different(recorded, *some) == []
    assert {outcome.status for outcome in recorded.values()} == {"done"}
    refused = [trial.base for trial in some if trial.base in REFUSED]
    assert warnings(caplog) == [
        f"{name} runs without a CUDA graph: its step waits for the device ({REFUSED[name]})" for name in refused
    ]
    pretrained = sum(outcome.extra_info.get("pretraining_epochs") == 1 for outcome in recorded.values())
    # for each slot: the teacher once a set of requirements, a student once, and once in pretraining
    assert emulated.recordings >= SLOTS * (1 + len(some) - len(refused) + pretrained)
    assert emulated.replays >= (STEPS - WARM_UP + STEPS) * (len(some) - len(refused))


def test_students_of_two_teachers_train_as_in_plain_steps(tmp_path: Path) -> None:
    some = [trial(method, teacher="resnet14+wrn_16_1") for method in ("camkd", "mkd", "kd", "embed")]
    recorded = train(tmp_path, Emulated(), *some)
    assert different(recorded, *some) == []


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(trial, marks=[] if trial.base in ("kd", "crd", "icd", "ab", "mgd", "simkd") else pytest.mark.slow)
        for trial in trials()
    ],
    ids=lambda trial: trial.method,
)
def test_in_bf16_too(tmp_path: Path, method: Trial) -> None:
    method = replace(method, precision="bf16")
    recorded = train(tmp_path, Emulated(), method)
    assert different(recorded, method) == []


FEW = ("kd", "crd", "mgd", "ft", "rld", "icd")


def test_resumed_in_the_midst_of_an_epoch_after_recording(tmp_path: Path) -> None:
    from kdbench.core.errors import Interrupted

    some, device = [trial(method) for method in FEW], Emulated(1)
    asked = iter([False] * (2 * STEPS + 3) + [True])  # both stages, and in the second epoch
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", device, *some, stop=lambda: next(asked))
    assert not device._forked  # nothing is under way that could write to memory of whoever comes next
    resumed = train(tmp_path / "parts", device, *some)
    assert different(resumed, *some) == []


@pytest.mark.usefixtures("plugged")
def test_graphs_that_share_the_default_generator_run_one_by_one(tmp_path: Path) -> None:
    """As in torch up to 2.11: what draws from it is never replayed beside another."""
    some = [trial(method) for method in ("t_drops", "kd", "t_drops+kd", "icd", "t_drops(kd_weight=2)")]
    shared = train(tmp_path, Emulated(shares_default_generator=True), *some)
    assert different(shared, *some) == []


def test_vanilla_cohorts_record_no_teacher(tmp_path: Path) -> None:
    emulated = Emulated()
    outcomes = train(tmp_path, emulated, trial("vanilla", teacher=None))
    assert outcomes["vanilla"].status == "done"
    assert emulated.recordings == SLOTS  # of the student, whose graph reads the rate of each epoch
    assert emulated.replays == STEPS - WARM_UP + STEPS


class _Waits(Distiller[Hyper]):
    """Reads a value back from the device, where gradients are set already."""

    def after_backward(self, step: Step) -> None:
        assert step.student.logits.mean().item() < 1e9


class _Counts(Distiller[Hyper]):
    """Counts its steps in Python."""

    steps = 0

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.steps += 1
        return {"count": step.student.logits.square().mean() * self.steps}


class _Rebinds(Distiller[Hyper]):
    """A moving average whose buffer is another tensor after every step."""

    mean: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.register_buffer("mean", torch.zeros(()))

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.mean = 0.9 * self.mean + step.student.logits.detach().mean()
        return {"mean": (step.student.logits - self.mean).square().mean()}


class _ReadsEpoch(Distiller[Hyper]):
    """Another term from the second epoch on; what Python decides is frozen in a recording."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"late": step.student.logits.square().mean() * (step.epoch if step.epoch > 1 else 0.5)}


class _WarmsUp(Distiller[Hyper]):
    """A weight that grows for the first half of the epochs, and stays."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"warm": step.student.logits.square().mean() * step.warm_up(120)}


class _DrawsOnHost(Distiller[Hyper]):
    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"drawn": step.student.logits.square().mean() * random.random()}


class _Keeps(Distiller[Hyper]):
    """Compares the teacher's logits with those of the step before, which it has not copied."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        before = getattr(self, "before", step.teacher.logits)
        self.before = step.teacher.logits
        return {"before": (step.student.logits - before).square().mean()}


class _Spoils(Distiller[Hyper]):
    """Changes in place what others read, once its step was recorded."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.epoch == 2:
            step.teacher.logits.mul_(100)
        return {}


class _WaitsAndSpoils(_Spoils):
    """The same in a plain step, beside which others would be replayed."""

    def after_backward(self, step: Step) -> None:
        assert step.student.logits.mean().item() < 1e9


class _Drops(Distiller[Hyper]):
    """Draws from torch's default generator."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"dropped": nn.functional.dropout(step.student.logits, 0.5).square().mean()}


class _Raises(Distiller[Hyper]):
    def losses(self, step: Step) -> dict[str, Tensor]:
        if step.epoch == 2:
            raise RuntimeError("no such map")
        return {}


PLUGGED: dict[str, type[Distiller[Hyper]]] = {
    "t_waits": _Waits,
    "t_counts": _Counts,
    "t_rebinds": _Rebinds,
    "t_epoch": _ReadsEpoch,
    "t_warms_up": _WarmsUp,
    "t_host": _DrawsOnHost,
    "t_keeps": _Keeps,
    "t_spoils": _Spoils,
    "t_waits_and_spoils": _WaitsAndSpoils,
    "t_drops": _Drops,
    "t_raises": _Raises,
}


@pytest.fixture
def plugged() -> Iterator[None]:
    with tiny_study.registered(PLUGGED):
        yield


@pytest.mark.usefixtures("plugged")
def test_what_a_recording_would_freeze_runs_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = [trial(method) for method in ("kd", "t_waits", "t_counts", "t_rebinds", "t_epoch")]
    recorded = train(tmp_path, Emulated(), *some)
    assert different(recorded, *some) == []
    assert warnings(caplog) == [
        "t_waits runs without a CUDA graph: its step waits for the device (_local_scalar_dense)",
        "t_counts runs without a CUDA graph: its step changes self.steps in Python, and not a tensor in place",
        "t_rebinds runs without a CUDA graph: its step changes self.mean in Python, and not a tensor in place",
    ]


@pytest.mark.usefixtures("plugged")
def test_a_method_that_reads_the_epoch_is_recorded_in_each(tmp_path: Path) -> None:
    """The others are recorded once, although the rate is another in each."""
    cosine = replace(RECIPE, epochs=3, schedule="cosine")
    some = [replace(trial(method), recipe=cosine) for method in ("kd", "t_epoch", "t_warms_up")]
    emulated = Emulated()
    recorded = train(tmp_path, emulated, *some)
    assert different(recorded, *some) == []
    # the teacher and kd once, t_epoch in every epoch, t_warms_up while its weight grows: 2/3, 1, 1
    assert emulated.recordings == SLOTS * (1 + 1 + 3 + 2)


@pytest.mark.usefixtures("plugged")
def test_a_method_that_keeps_what_is_overwritten_fails_and_says_why(tmp_path: Path) -> None:
    outcomes = train(tmp_path, Emulated(), trial("t_keeps"), trial("kd"))
    assert outcomes["kd"].status == "done"
    assert outcomes["t_keeps"].status == "failed"
    expected = "self.before keeps a tensor of the step, which the next step overwrites: keep a clone"
    assert expected in (outcomes["t_keeps"].reason or "")


@pytest.mark.usefixtures("plugged")
def test_numbers_drawn_on_the_host_are_drawn_in_every_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = [trial("t_host"), trial("kd")]
    random.seed(1)
    plain(*some)
    random.seed(1)
    assert different(train(tmp_path, Emulated(), *some), *some) == []
    assert warnings(caplog) == ["t_host runs without a CUDA graph: its step draws random numbers on the host"]


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("name", ["t_spoils", "t_raises", "t_waits_and_spoils"])
def test_a_student_that_leaves_takes_nothing_with_it(tmp_path: Path, name: str) -> None:
    """Neither what it spoiled, which others may be reading, nor what it has launched."""
    some = [trial(method) for method in ("crd", "kd", name, "icd", "t_waits")]
    assert plain(*some)[name].status == "failed"
    emulated = Emulated(3)
    recorded = train(tmp_path, emulated, *some)
    assert different(recorded, *some) == []
    assert not emulated._forked


def test_a_teacher_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its students' recordings read the tensors of the step in which they were made."""
    some = [trial(method) for method in FEW]
    original = Teacher.__call__

    def waiting(self: Teacher, batch: Batch, **requests: bool) -> Any:
        output = original(self, batch, **requests)
        assert output.logits.sum().item() < 1e9
        return output

    monkeypatch.setattr(Teacher, "__call__", waiting)
    recorded = train(tmp_path, Emulated(), *some)
    assert different(recorded, *some) == []
    assert warnings(caplog) == [
        "the teacher runs without a CUDA graph: its step waits for the device (_local_scalar_dense)"
    ]


class FailingOnce(Emulated):
    """Recording number `which` raises after so many operations."""

    def __init__(self, which: int, after: int | None, error: Exception, **options: bool) -> None:
        super().__init__(**options)
        self.which, self.after, self.error = which, after, error

    def record(
        self, stream: Stream, work: Callable[[], object], generator: torch.Generator | None, pool: Any
    ) -> Callable[[], None]:
        self.which -= 1
        if self.which != 0:
            return super().record(stream, work, generator, pool)

        def failing() -> None:
            work()
            if self.after is None:
                raise self.error

        self.left = self.after
        return super().record(stream, failing, generator, pool)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.which == 0 and self.recording and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("capture ended") from self.error
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("after", [10, 120, None])
def test_a_recording_that_fails_leaves_nothing_behind(
    tmp_path: Path, after: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """In the forward pass, in the backward pass, and at its end."""
    some = [trial(method) for method in ("kd", "icd")]
    failing = FailingOnce(1, after, ValueError("not in a graph"))
    recorded = train(tmp_path, failing, *some)
    assert failing.failures == 1
    assert different(recorded, *some) == []
    assert warnings(caplog) == ["kd runs without a CUDA graph: ValueError: not in a graph"]


def test_after_a_recording_that_failed_older_torch_replays_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that come after it run plainly."""
    some = [trial(method) for method in ("kd", "icd", "crd")]
    second_of_crd = 2 * len(some)  # before the first one of the teacher
    failing = FailingOnce(second_of_crd, None, ValueError("not in a graph"), recovers=False)
    recorded = train(tmp_path, failing, *some)
    assert different(recorded, *some) == []
    assert failing.failures == 1
    first, *others = warnings(caplog)
    assert first.endswith("ValueError: not in a graph")
    assert others
    assert all(
        line.endswith("an earlier recording failed, and this torch makes no other after that") for line in others
    )
    # of kd and icd, in both epochs; of crd until it runs plainly
    assert failing.replays == 2 * (EPOCHS * STEPS - WARM_UP) + 1


def test_memory_that_ends_in_a_recording_splits_the_cohort(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error that tells of it is hidden behind the one that ends the recording."""
    some = [trial(method) for method in ("kd", "icd")]
    failing = FailingOnce(1, 100, torch.OutOfMemoryError("CUDA out of memory"))
    outcomes = train(tmp_path, failing, *some)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}
    assert {outcome.cost.get("split_from") for outcome in outcomes.values()} == {2}
    assert failing.failures == 1
    assert any("out of memory with 2 students" in record.getMessage() for record in caplog.records)


def test_a_student_that_left_is_freed_without_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph would keep its memory, and break others' recordings when it is destroyed within one."""
    alive: list[weakref.ref[Student]] = []
    original = Student.close

    def close(self: Student) -> None:
        alive.append(weakref.ref(self))
        original(self)

    monkeypatch.setattr(Student, "close", close)
    counts: list[int] = []

    def stop() -> bool:
        counts.append(sum(reference() is not None for reference in alive))
        return False

    gc.collect()
    gc.disable()
    try:
        with tiny_study.registered({"t_raises": _Raises}):
            train(tmp_path, Emulated(), trial("t_raises"), trial("kd"), stop=stop)
    finally:
        gc.enable()
    assert len(alive) >= 1
    assert counts[-1] == 0


def test_the_emulation_finds_what_is_not_waited_for() -> None:
    emulated = Emulated()
    with emulated:
        first, second = emulated.stream(), emulated.stream()
        tensor = torch.zeros(3)
        emulated.fork(first)
        emulated.fork(second)
        with first.running():
            tensor.add_(1)
        with pytest.raises(Race, match="stream 2 reads what stream 1 writes"), second.running():
            tensor.sum()
        emulated.join(first)
        emulated.fork(second)
        with second.running():
            tensor.sum()
        with pytest.raises(Race, match="main writes what stream 2 reads"):
            tensor.add_(1)


def test_the_emulation_replays_without_python() -> None:
    emulated, calls, tensor = Emulated(), [0], torch.zeros(())

    def work() -> None:
        calls[0] += 1
        tensor.add_(1)

    with emulated:
        step = RecordedStep("counts", emulated)
        for _ in range(WARM_UP + 3):
            step(0, "key", Work(work))
            step.join()
    assert tensor == WARM_UP + 3
    assert calls == [WARM_UP + 1]
    assert (emulated.recordings, emulated.replays) == (1, 3)


def test_a_recording_holds_for_its_key() -> None:
    emulated, tensor = Emulated(), torch.zeros(())
    with emulated:
        step = RecordedStep("adds", emulated)
        for key in (1, 1, 1, 1, 2, 2, 1):
            step(0, key, Work(partial(tensor.add_, key)))
            step.join()
    assert tensor == 9
    assert emulated.recordings == 3


def test_only_long_epochs_on_cuda_are_recorded() -> None:
    assert isinstance(accelerator(CPU, 781), Plain)
    assert isinstance(accelerator(torch.device("cuda"), 10), Plain)


def test_the_estimate_measures_replayed_steps() -> None:
    """Where a run will replay its steps, plain ones would cost several times as much."""
    cohort = tiny_study.cohort(trial("kd"), trial("icd"))
    emulated = Emulated()
    with emulated:
        costs = measure_costs._method_costs(cohort, DATASET, CPU, emulated, steps=STEPS, epochs=2)
        assert emulated.recordings == SLOTS * (1 + 2)  # of the teacher and of both students
        methods = emulated.replays
        archs = measure_costs.architecture_costs(["resnet8"], DATASET.info, RECIPE, CPU, "fp32", on=emulated)
    assert methods >= 2 * STEPS  # of two students, in the second epoch
    assert emulated.replays - methods == 2 * (1 + measure_costs.REPETITIONS)  # training, and evaluation
    assert all(seconds > 0 for seconds, *_ in costs.values())
    assert archs["resnet8"].train > archs["resnet8"].forward > 0
