"""Static buffers and CUDA graphs: without a graph, on the CPU, they must train exactly as eager steps do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.data.dataset import Batch
from kdbench.train import cohort
from kdbench.train.cuda_graph import WARM_UP, CudaGraphStep, StaticBuffers, use_cuda_graph
from tests.train import tiny_study

METHODS = ["kd", "crd", "rrd", "rrd_momentum", "vid", "ab", "ft", "icd"]


def test_static_buffers_train_as_eager_steps_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replayed step keeps the tensors that it was captured with, so a step that reads others would show."""
    trials = [tiny_study.trial(method) for method in METHODS]
    eager = tiny_study.train(tmp_path / "eager", *trials)
    monkeypatch.setattr(cohort, "use_cuda_graph", lambda _device, steps: steps > WARM_UP)
    replayed = tiny_study.train(tmp_path / "replayed", *trials)
    assert list(eager) == list(replayed)
    for name in eager:
        assert eager[name].status == "done"
        assert tiny_study.equal(eager[name], replayed[name]), name


def test_a_replayed_step_keeps_its_arguments() -> None:
    arguments: list[torch.Tensor] = []

    def function(tensor: torch.Tensor) -> torch.Tensor:
        arguments.append(tensor)
        return tensor

    step = CudaGraphStep("function", function, tiny_study.CPU)
    tensors = [torch.zeros(1) for _ in range(WARM_UP + 3)]
    for tensor in tensors:
        step(None, tensor)
    captured = tensors[WARM_UP]
    assert [argument is tensor for argument, tensor in zip(arguments[:WARM_UP], tensors, strict=False)] == [
        True
    ] * WARM_UP
    assert all(argument is captured for argument in arguments[WARM_UP:])


def test_static_buffers_hold_every_tensor_of_a_batch() -> None:
    normalization = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loader = tiny_study.DATASET.loader(
        batch_size=8, pad=1, device=tiny_study.CPU, seed=0, normalizations=[normalization]
    )
    buffers = StaticBuffers[Batch]()
    first: Batch | None = None
    for batch in loader.epoch(1):
        expected = [tensor.clone() for tensor in batch.tensors()]
        filled = buffers.fill(batch)
        first = first or filled
        assert filled is first
        assert all(map(torch.equal, filled.tensors(), expected))
    assert len(expected) == 4


def test_only_long_epochs_on_cuda_are_captured() -> None:
    assert use_cuda_graph(torch.device("cuda"), 781)
    assert not use_cuda_graph(torch.device("cuda"), 10)
    assert not use_cuda_graph(torch.device("cpu"), 781)
