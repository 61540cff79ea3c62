"""What is said of a method's step before it meets a GPU."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from kdbench.cli.main import main
from kdbench.distill import Context, Distiller, Hyper, Step, registry
from kdbench.train.gpu_lint import Waits, lint_cohort
from tests.train import tiny_study
from tests.train.tiny_study import DATASET, trial

READS_EPOCH = "reads the epoch: it is recorded again whenever that gives another value"
EXPECTED = {
    "kdsvd": ["waits for the device (torch.linalg.eigh): torch.where and masks keep the work there"],
    **{name: [READS_EPOCH] for name in ("ctkd", "dkd", "dtkd", "hkd", "kdpp", "norm", "reviewkd", "rld", "wkd")},
}
"""What is found in the bundled methods; nothing in those that are not named."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sentences(*methods: str, teacher: str = "wrn_16_1") -> dict[str, list[str]]:
    trials = [trial(method, teacher=teacher) for method in methods]
    found = lint_cohort(tiny_study.cohort(*trials), DATASET)
    return {trial.method: [finding.sentence for finding in found[trial.id]] for trial in trials}


def test_the_bundled_methods() -> None:
    methods = [name for name, info in registry.infos().items() if name not in ("vanilla", "camkd", "mkd")]
    found = {**sentences(*methods), **sentences("camkd", "mkd", teacher="resnet14+wrn_16_1")}
    assert {name: lines for name, lines in found.items() if lines} == EXPECTED


class _Everything(Distiller[Hyper]):
    """All that a GPU forbids."""

    calls = 0
    in_class: ClassVar[list[int]] = []

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.seen: list[float] = []
        self.margins = torch.ones(context.classes)
        self.functional = nn.functional
        self.log = logging.getLogger("a method's own")

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits
        self.calls += 1
        self.in_class.append(1)
        self.seen.append(logits.detach().mean().item())
        self.last = step.teacher.logits
        right = logits[logits.argmax(dim=1) == step.batch.labels]
        weights = torch.ones(logits.shape[1]).to(logits.device) * self.margins * (random.random() + 1)
        noise = self.functional.dropout(logits, 0.1) * float(step.teacher.logits.detach().cpu().numpy().mean() * 0 + 1)
        return {"any": (right.sum() * 0 + (noise * weights).square().mean())}


class _Clean(Distiller[Hyper]):
    """Does the same sort of things as a GPU wants them."""

    count: Tensor

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.register_buffer("count", torch.zeros(()))

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits = step.student.logits
        self.count += 1
        right = torch.where(logits.argmax(dim=1) == step.batch.labels, logits.mean(dim=1), 0.0)
        noise = torch.rand(logits.shape, generator=self.generator, device=logits.device)
        kept = logits.clone()
        kept[noise < 0.1] = 0.0  # a mask and one value: nothing is waited for
        return {"any": right.sum() * 0 + (kept * torch.ones_like(logits)).square().mean() / self.count}


@pytest.fixture
def _plugged() -> Iterator[None]:
    with tiny_study.registered({"t_everything": _Everything, "t_clean": _Clean}):
        yield


@pytest.mark.usefixtures("_plugged")
def test_what_a_gpu_forbids_is_said_in_one_sentence_each() -> None:
    found = sentences("t_everything", "t_clean")
    assert found["t_clean"] == []
    assert found["t_everything"] == [
        "self.margins is a tensor that stays on the CPU: register_buffer moves it to the device",
        "waits for the device (.item(), float() or bool(), indexing with a mask, .cpu(), .numpy()): "
        "torch.where and masks keep the work there",
        "self.last keeps a tensor of the step, which the next step overwrites: keep a clone",
        "changes _Everything.in_class, its size, self.seen, its size, self.calls, _Everything.in_class[1], "
        "self.seen[1] in Python, which a recording freezes: "
        "change a buffer in place, or set to None again what only hands something on",
        "draws random numbers on the host, which a recording freezes: use self.generator",
        "makes a tensor on the CPU (torch.ones): give device=",
        "draws from torch's default generator: self.generator lets it run beside others on any torch",
    ]


@pytest.mark.usefixtures("_plugged")
def test_a_method_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Clean, "losses", lambda self, step: {"any": self.no_such_thing})
    found = sentences("t_clean", "kd", "t_everything")
    assert found["kd"] == []
    (sentence,) = found["t_clean"]
    assert sentence.startswith("fails in its first steps: AttributeError: '_Clean' object has no attribute")
    assert len(found["t_everything"]) == 7


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (lambda x: x.sum().item(), ["_local_scalar_dense"]),
        (lambda x: bool(x.sum() > 0), ["_local_scalar_dense"]),
        (lambda x: x[x > 0], ["index"]),
        (lambda x: x.nonzero(), ["nonzero"]),
        (lambda x: torch.equal(x, x), ["equal"]),
        (lambda x: torch.tensor([1.0, 2.0, 3.0]) + x, ["lift_fresh"]),
        (lambda x: x[[0, 1]], ["lift_fresh"]),
        (lambda x: x.masked_fill(x > 0, 0.0), []),
        (lambda x: x.index_fill(1, x[0].argmax(), 0.0), []),
        (lambda x: x.topk(2).values, []),
        (lambda x: x[:, 1:].softmax(dim=1), []),
    ],
)
def test_operations_that_wait(work: object, found: list[str]) -> None:
    with Waits() as waits:
        work(torch.arange(6.0).reshape(2, 3))  # type: ignore[operator]
    assert waits.found == found


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["verify", "--gpu", "kd,camkd", "--pair", "resnet20:resnet8"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was found that a GPU forbids" in printed
    assert "n/a: it needs at least 2 teachers" in printed
    assert main(["verify", "--gpu", "kdsvd", "--pair", "resnet20:resnet8"]) == 1
    assert "torch.linalg.eigh" in capsys.readouterr().out
    assert main(["verify", "--gpu", "kd", "--require", "kd"]) == 2
    assert "go with --golden" in capsys.readouterr().err
    for nothing in ("", "vanilla"):
        assert main(["verify", "--gpu", nothing]) == 2
        assert "--gpu" in capsys.readouterr().err
    assert main(["verify", "--gpu", "no_such_method"]) == 2
    assert "no_such_method" in capsys.readouterr().err
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from kdbench.distill import *\n@register('counting', Hyper, paper='-')\n"
        "class Counting(Distiller):\n    calls = 0\n    def losses(self, step):\n        self.calls += 1\n"
        "        return {'calls': step.student.logits.mean() * self.calls}\n",
        "utf-8",
    )
    try:
        assert main(["verify", "--gpu", "counting", "--pair", "resnet20:resnet8", "--plugins", str(mine)]) == 1
    finally:
        registry._METHODS.pop("counting", None)
    assert "changes self.calls in Python, which a recording freezes" in " ".join(capsys.readouterr().out.split())
