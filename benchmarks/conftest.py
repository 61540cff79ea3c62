"""Options of `pytest benchmarks`, and what its files say of the machine."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import compare
from kdbench.core.errors import UserError
from kdbench.core.trial import VANILLA
from kdbench.plan import pairs
from kdbench.plan.expressions import parse
from kdbench.runner.catalog import build_catalog
from kdbench.train.device import configure_torch, resolve_device


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kdbench")
    group.addoption("--methods", default="kd,crd,icd", help="methods whose steps are measured (default: kd,crd,icd)")
    group.addoption("--pairs", default="wrn_40_2:wrn_16_2", help="pairs, comma-separated (default: wrn_40_2:wrn_16_2)")
    group.addoption("--size", type=int, default=32, help="pixels a side (default: 32)")
    group.addoption("--batch", type=int, default=64, help="images of a batch (default: 64)")
    group.addoption("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    group.addoption("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    group.addoption("--threads", type=int, help="CPU threads")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each method and pair that is asked for."""
    options = metafunc.config.option
    if min(options.size, options.batch) < 1:
        raise pytest.UsageError("--size and --batch must be at least 1")
    try:
        if "pair" in metafunc.fixturenames:
            chosen = [str(pair) for pair in pairs.parse(options.pairs, "cifar100")]
            metafunc.parametrize("pair", chosen, scope="session")
        if "method" in metafunc.fixturenames:
            catalog = build_catalog(compare.load("synthetic:640", options.size))
            found = [method.expression for method in parse(f"{VANILLA},{options.methods}", catalog)]
            metafunc.parametrize("method", found)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["kdbench"] = compare.machine(resolve_device(config.option.device))


@pytest.fixture(scope="session")
def bench(pair: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A pair with noise for images, as `compare.py` makes it."""
    options = request.config.option
    args: Namespace = compare.build_parser().parse_args([])
    vars(args).update(
        pair=pair,
        methods=f"{VANILLA},{options.methods}",
        images=f"synthetic:{10 * options.batch}",
        size=options.size,
        batch=options.batch,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    )
    device, threads = resolve_device(args.device), torch.get_num_threads()
    dataset = compare.load(args.images, args.size)
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    made = compare.Bench(args, dataset, build_catalog(dataset), folder, device)
    configure_torch(device, made.precision, args.threads)
    yield made
    torch.set_num_threads(threads)
