from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.core.errors import UserError
from kdbench.data.resident import Batch
from kdbench.models.output import Output
from kdbench.plan.recipes import recipe
from kdbench.train import device
from kdbench.train.device import describe_environment, resolve_device, resolve_precision
from kdbench.train.evaluate import accuracy
from kdbench.train.optim import learning_rate
from kdbench.train.student import widened


def test_the_published_schedule() -> None:
    paper = recipe("paper")
    rates = {epoch: learning_rate(paper, 0.05, epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)}
    wanted = {1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    assert rates == {epoch: pytest.approx(rate, rel=1e-12) for epoch, rate in wanted.items()}


def test_a_short_schedule_drops_once_its_milestones_are_reached() -> None:
    short = recipe("paper", epochs=6)  # milestones 3.75, 4.5, 5.25
    rates = [learning_rate(short, 1.0, epoch) for epoch in range(1, 7)]
    assert rates == [pytest.approx(rate) for rate in (1, 1, 1, 1, 0.1, 0.01)]
    one = recipe("paper", epochs=1)
    assert learning_rate(one, 1.0, 1) == 1.0


class _Table(nn.Module):
    """Logits by image index."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> Output:
        rows = self.logits[images[:, 0, 0, 0].long()]
        return Output(rows, (), rows)


def test_accuracy_counts_every_image() -> None:
    logits = torch.zeros(5, 7)
    order = [[6, 0, 1, 2, 3, 4, 5]] * 5  # class 6 scores highest, then 0, 1, 2, 3: the top five
    for row, ranks in enumerate(order):
        for rank, label in enumerate(ranks):
            logits[row, label] = -rank
    labels = torch.tensor([6, 0, 3, 4, 5])
    images = torch.arange(5.0)[:, None, None, None]
    batches = [Batch(images[part], labels[part], labels[part]) for part in (slice(0, 3), slice(3, 5))]
    found = accuracy(_Table(logits), batches, torch.device("cpu"), "fp32")
    assert found == pytest.approx((100 / 5, 300 / 5))


def test_devices_that_are_not_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for text in ("tpu", "cuda:x", "meta", "gpu"):
        with pytest.raises(UserError, match="--device"):
            resolve_device(text)
    if not torch.cuda.is_available():
        assert resolve_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="no CUDA device"):
            resolve_device("cuda:0")


def test_precision_and_environment() -> None:
    cpu = torch.device("cpu")
    assert [resolve_precision(text, cpu, 8) for text in ("auto", "bf16", "fp32")] == ["fp32", "bf16", "fp32"]
    found = describe_environment(cpu)
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("flags", "size", "precision"),
    [
        ("fpu avx512f avx512_bf16", 32, "bf16"),
        ("fpu amx_bf16 amx_tile", 64, "bf16"),
        ("fpu avx512_bf16", 31, "fp32"),
        ("fpu avx512f avx512_vbmi", 32, "fp32"),
        ("", 32, "fp32"),
    ],
)
def test_precision_follows_the_processor(
    flags: str, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_cpuinfo", lambda *_names: flags)
    assert resolve_precision("auto", torch.device("cpu"), size) == precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_maps_come_back_in_the_layout_of_convolutions(dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    before = maps * 1
    inner = before * 1
    arrived: list[torch.Tensor] = []
    before.register_hook(arrived.append)
    weights = torch.arange(96.0).reshape(2, 3, 16)
    (widened(inner).flatten(2) * weights).sum().backward()  # flattened: its own gradient lies the other way
    assert arrived[0].is_contiguous(memory_format=torch.channels_last)
    assert arrived[0].dtype == dtype
    torch.testing.assert_close(arrived[0].float(), weights.reshape(2, 3, 4, 4))
    assert widened(torch.ones(2, 3, dtype=dtype)).dtype == torch.float32
