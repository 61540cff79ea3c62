"""Steps on fixed places: what CUDA replays, here without a graph, must train exactly as plain steps do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.data.resident import Batch, Loader
from kdbench.train import cohort
from kdbench.train.cuda_graph import PLAIN, CudaGraphStep, StaticBatch, use_cuda_graph
from tests.train import tiny_study

METHODS = ["kd", "crd", "rrd", "vid", "ab", "ft", "icd"]


def test_fixed_places_train_as_plain_steps_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings keep the tensors that they were made with, so a step that reads others would show."""
    trials = [tiny_study.trial(method) for method in METHODS]
    plain = tiny_study.train(tmp_path / "plain", *trials)
    monkeypatch.setattr(cohort, "use_cuda_graph", lambda _device, steps: steps > PLAIN)
    replayed = tiny_study.train(tmp_path / "replayed", *trials)
    assert list(plain) == list(replayed)
    for name in plain:
        assert plain[name].status == "done"
        assert tiny_study.equal(plain[name], replayed[name]), name


def test_a_recording_keeps_its_places() -> None:
    seen: list[torch.Tensor] = []

    def work(place: torch.Tensor) -> torch.Tensor:
        seen.append(place)
        return place

    replay = CudaGraphStep("work", work, tiny_study.CPU)
    places = [torch.zeros(1) for _ in range(PLAIN + 3)]
    for place in places:
        replay(None, place)
    recorded = places[PLAIN]
    assert [each is place for each, place in zip(seen[:PLAIN], places, strict=False)] == [True] * PLAIN
    assert all(each is recorded for each in seen[PLAIN:])


def test_slots_hold_every_tensor_of_a_batch() -> None:
    own = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loader = Loader(tiny_study.IMAGES, batch_size=8, pad=1, device=tiny_study.CPU, seed=0, normalizations=[own])
    slots = StaticBatch()
    first: Batch | None = None
    for batch in loader.epoch(1):
        wanted = [tensor.clone() for tensor in batch.tensors()]
        filled = slots.fill(batch)
        first = first or filled
        assert filled is first
        assert all(map(torch.equal, filled.tensors(), wanted))
    assert len(wanted) == 4


def test_only_long_epochs_on_cuda_are_recorded() -> None:
    assert use_cuda_graph(torch.device("cuda"), 781)
    assert not use_cuda_graph(torch.device("cuda"), 10)
    assert not use_cuda_graph(torch.device("cpu"), 781)
