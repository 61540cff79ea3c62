"""What is said to CUDA, shown on fakes of it: no device is needed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.core.checkpoint import CheckpointInterval
from kdbench.core.errors import DeviceLost
from kdbench.models import build
from kdbench.models.folding import fold
from kdbench.runner.executors import local
from kdbench.train import cohort, cuda_graph, device
from kdbench.train.checkpoint import CheckpointSchedule
from kdbench.train.cuda_graph import Cuda
from kdbench.train.device import is_out_of_memory, peak_mib, reset_peak_memory
from kdbench.train.evaluate import autocast, evaluation_batch
from kdbench.train.optim import build_optimizer, load_optimizer, set_learning_rate
from kdbench.train.shared_inputs import SharedInputs
from kdbench.train.student import Student
from kdbench.train.teacher import Teacher
from tests.train import tiny_study

GPU = torch.device("cuda:0")


class _Stream:
    def __init__(self, *_: Any) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


class _Graph:
    """Of torch from 2.14 on: generators register themselves."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class _OlderGraph(_Graph):
    registered: Any = None

    def register_generator_state(self, generator: Any) -> None:
        warnings.warn("deprecated", FutureWarning, stacklevel=2)
        _OlderGraph.registered = generator


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    monkeypatch.setattr(torch.cuda, "default_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    return Cuda(GPU)


@pytest.mark.parametrize("graph", [_Graph, _OlderGraph])
@pytest.mark.filterwarnings("error")
def test_generators_are_registered_where_that_is_needed(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, graph: type[_Graph]
) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    _OlderGraph.registered, generator = None, torch.Generator()
    replay = cuda.record(cuda.stream(), lambda: None, generator, None)
    replay()
    assert _OlderGraph.registered is (generator if graph is _OlderGraph else None)


def test_nothing_is_collected_while_recording(cuda: Cuda) -> None:
    enabled: list[bool] = []
    cuda.record(cuda.stream(), lambda: enabled.append(gc.isenabled()), None, None)
    assert enabled == [False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        cuda.record(cuda.stream(), lambda: 1 / 0, None, None)
    assert gc.isenabled()


class _Capture:
    """`torch.cuda.graph`: makes a stream current, and does not make it so any more only if the recording can end."""

    current: list[Any] = []  # noqa: RUF012
    ends = True

    def __init__(self, graph: Any, pool: Any, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.current.append(self.stream)

    def __exit__(self, *_: object) -> None:
        if not self.ends:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.current.pop()


@pytest.mark.parametrize(("version", "recovers"), [("2.11.0+cu130", False), ("2.12.1", False), ("2.13.0", True)])
def test_a_recording_that_cannot_end(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, version: str, recovers: bool) -> None:
    """Older torch records nothing after it; and what is launched next is launched on the main stream again."""

    @contextmanager
    def running(stream: Any) -> Iterator[None]:
        before = list(_Capture.current)
        _Capture.current.append(stream)
        try:
            yield
        finally:
            _Capture.current[:] = before

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "graph", _Capture)
    monkeypatch.setattr(torch.cuda, "stream", running)

    def fails() -> None:
        raise ValueError("no such map")

    with pytest.raises(ValueError, match="no such map"):  # the method's own error, and the recording ends in order
        cuda.record(cuda.stream(), fails, None, None)
    assert cuda.can_record
    monkeypatch.setattr(_Capture, "ends", False)
    with pytest.raises(RuntimeError, match="previous error during capture") as caught:
        cuda.record(cuda.stream(), fails, None, None)
    assert cuda.can_record == recovers
    assert isinstance(caught.value.__context__, ValueError | None)
    assert _Capture.current == []


@pytest.mark.parametrize(("version", "shares"), [("2.6.0", True), ("2.12.1+cu130", True), ("2.13.0", False)])
def test_older_graphs_share_the_default_generator(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, version: str, shares: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert Cuda(GPU).shares_default_generator == shares


def test_synchronizations_are_found_and_other_warnings_kept(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []

    def set_mode(mode: Any) -> None:
        modes.append(mode)
        said = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
        warnings.warn(said, UserWarning, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter("always")
        with cuda.synchronizations() as found:
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
            warnings.warn("of another kind", UserWarning, stacklevel=1)
    (place,) = found
    assert "of another kind" in [str(warning.message) for warning in kept]
    assert place.startswith(__file__)
    assert modes == ["warn", 0]


def test_streams_wait_where_they_are_forked_and_joined(cuda: Cuda) -> None:
    first: Any = cuda.stream()
    second: Any = cuda.stream()
    main: Any = cuda.main
    cuda.fork(first)
    cuda.fork(second)
    assert first.cuda.waited == second.cuda.waited == [main.cuda]
    cuda.join(first)
    cuda.join()
    cuda.join()  # nothing is left to wait for
    assert main.cuda.waited == [first.cuda, second.cuda]


def test_short_epochs_are_not_recorded(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_graph._cuda.cache_clear()
    assert isinstance(cuda_graph.accelerator(GPU, 781), Cuda)
    assert cuda_graph.accelerator(GPU, 781) is cuda_graph.accelerator(GPU, 781)  # what it learned is the process's
    assert isinstance(cuda_graph.accelerator(GPU, 49), cuda_graph.Plain)
    cuda_graph._cuda.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_ended_is_known_in_all_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_about_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_memory_of_graphs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**20)
    assert peak_mib(GPU) == 3.0
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    reset_peak_memory(GPU)
    assert done == ["empty", "reset"]  # what an earlier cohort has cached is none of the next one's


def test_adamw_can_be_recorded_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Parameter:
        is_cuda = True
        device = GPU

    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, **options: made.update(options))
    monkeypatch.setattr(torch, "tensor", lambda value, **options: options)
    build_optimizer(replace(tiny_study.RECIPE, optimizer="adamw"), [Parameter()], 0.1)  # type: ignore[list-item]
    assert made["capturable"]
    assert made["lr"] == {"device": GPU, "dtype": torch.float32}  # as its kernels read it


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_checkpoint_from_elsewhere_leaves_the_optimizer_recordable(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    recipe = replace(tiny_study.RECIPE, optimizer=name)
    here, there = (build_optimizer(recipe, [parameter], lr) for lr in (0.1, 0.2))
    read = here.param_groups[0]["lr"]  # by recorded steps, from then on
    if name == "adamw":
        here.param_groups[0]["capturable"] = True
    parameter.grad = torch.ones(2)
    there.step()
    load_optimizer(here, there.state_dict())
    set_learning_rate(here, 0.3)
    assert here.param_groups[0]["lr"] is read
    assert read.item() == 0.3
    if name == "adamw":
        assert here.param_groups[0]["capturable"]
    (loaded,) = here.state_dict()["state"].values()
    (saved,) = there.state_dict()["state"].values()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_rate_in_a_tensor_gives_the_bits_of_a_number(name: str) -> None:
    """On a CPU, where trajectories are compared with those of the authors' code."""
    recipe = replace(tiny_study.RECIPE, optimizer=name)
    numbers, tensors = (torch.nn.Parameter(torch.linspace(-1, 1, 100)) for _ in range(2))
    ours, plain = (build_optimizer(recipe, [parameter], 0.05) for parameter in (tensors, numbers))
    for step in range(3):
        rate = 0.05 * 0.7**step
        set_learning_rate(ours, rate)
        plain.param_groups[0]["lr"] = rate
        for parameter in (numbers, tensors):
            parameter.grad = parameter.detach().square() + step
        ours.step()
        plain.step()
    assert torch.equal(numbers, tensors)


def test_batches_of_evaluation_fit_the_device() -> None:
    assert evaluation_batch(torch.device("cpu"), 32) == 500
    assert [evaluation_batch(GPU, size) for size in (8, 32, 64, 224)] == [2000, 2000, 500, 100]


def test_there_are_queues_for_all_students() -> None:
    """Set when `device` is imported, which is before CUDA starts; who sets it otherwise knows why."""
    code = "import os, kdbench.train.device; print(os.environ['CUDA_DEVICE_MAX_CONNECTIONS'])"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_MAX_CONNECTIONS"}
    for given, expected in ({}, "32"), ({"CUDA_DEVICE_MAX_CONNECTIONS": "8"}, "8"):
        process = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **given}, capture_output=True, text=True, check=True
        )
        assert process.stdout.strip() == expected


def test_a_teacher_cast_once_answers_as_under_autocast() -> None:
    """Its weights are cast when it is made, not in every step; the bits are the same."""
    network = build("wrn_16_1", 4, 8)
    batches = tiny_study.DATASET.loader(batch_size=64, pad=0, device=tiny_study.CPU, seed=0).epoch(1)
    images = next(batches)
    teacher = Teacher(network, "wrn_16_1", tiny_study.CPU, "bf16")
    output = teacher(images)
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.float32}
    with torch.no_grad(), autocast(tiny_study.CPU, "bf16"):
        expected = fold(teacher.network)(images.images)
    assert torch.equal(output.logits, expected.logits.float())
    for ours, theirs in zip(output.feature_maps, expected.feature_maps, strict=True):
        assert torch.equal(ours, theirs.float())


@contextmanager
def _device_that_fails(monkeypatch: pytest.MonkeyPatch, at: str) -> Iterator[None]:
    """From the second epoch on nothing works; where that shows is another matter."""
    broken = False
    original = Student.begin_epoch

    def begin_epoch(self: Student, epoch: int) -> None:
        nonlocal broken
        original(self, epoch)
        broken = epoch == 2

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")

    def breaking(function: Any) -> Any:
        return lambda *args, **options: fails() if broken else function(*args, **options)

    monkeypatch.setattr(Student, "begin_epoch", begin_epoch)
    owner, name = {"student": (Student, "step"), "shared": (SharedInputs, "advance")}[at]
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    for module in (cohort, local):
        monkeypatch.setattr(module, "answers", lambda device: not broken)
    yield


@pytest.mark.parametrize(("at", "blamed"), [("student", ["kd"]), ("shared", [])])
def test_a_device_that_failed_ends_the_run_and_blames_one_student_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, blamed: list[str]
) -> None:
    observer = tiny_study.Quiet()
    trials = [tiny_study.trial(method) for method in ("kd", "icd", "crd")]
    with _device_that_fails(monkeypatch, at), pytest.raises(DeviceLost, match="has failed and computes no longer"):
        tiny_study.run_cohort(tmp_path, tiny_study.cohort(*trials), observer=observer)
    assert [outcome.trial.method for outcome in observer.outcomes] == blamed
    assert {outcome.status for outcome in observer.outcomes} <= {"failed"}
    for outcome in observer.outcomes:
        assert outcome.reason is not None
        assert outcome.reason.startswith("the device failed, maybe at another student's work: RuntimeError: CUDA error")


def test_a_device_answers_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.answers(tiny_study.CPU)

    def ones(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "ones", ones)
    assert not device.answers(GPU)


def test_checkpoints_on_a_gpu_wait_for_five_minutes_and_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    on_gpu, on_cpu = CheckpointSchedule(None, GPU), CheckpointSchedule(None, tiny_study.CPU)
    asked = CheckpointSchedule(CheckpointInterval(2), GPU)
    now = 299.0
    assert [schedule.due(2) for schedule in (on_gpu, on_cpu, asked)] == [False, True, True]
    now = 300.0
    assert [schedule.due() for schedule in (on_gpu, on_cpu, asked)] == [False, False, False]  # within an epoch
    assert on_gpu.due(3)
    on_gpu.saved()
    assert not on_gpu.due(4)


def test_a_teacher_that_cannot_be_folded_keeps_its_own_weights() -> None:
    """It is cast as a copy: its weights are also those of extra teachers, and its classifier is read in float32."""
    network = build("resnet8", 4, 8)
    network.forward = network.forward
    assert fold(network) is network
    teacher = Teacher(network, "resnet8", tiny_study.CPU, "bf16")
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.float32}
