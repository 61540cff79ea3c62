"""Devices, precision and what a record says of the machine."""

from __future__ import annotations

import pytest
import torch

from kdbench.core.errors import UserError
from kdbench.train import device
from kdbench.train.device import describe_environment, resolve_device, resolve_precision, seed_default_generator


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
    environment = describe_environment(cpu)
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()


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


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 5, 2**63 - 1])
def test_the_default_generator_draws_as_after_manual_seed(seed: int) -> None:
    """Dropout masks must not depend on how the generator was seeded."""
    draws = []
    for seed_it in (lambda: torch.manual_seed(seed), lambda: seed_default_generator(torch.device("cpu"), seed)):
        with torch.random.fork_rng(devices=[]):
            seed_it()
            draws.append(torch.cat([torch.rand(5), torch.randn(5), torch.nn.functional.dropout(torch.ones(50))]))
    assert torch.equal(*draws)
