"""The measuring stick measures what it says: both sides train alike, and the figures are there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kdbench.methods.crd import CRDHyper

from benchmarks import compare, conventional, marginal, precision
from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.distill import Batch, Output, Shapes
from kdbench.models import FeatureShapes, build, features, info
from kdbench.train.student import Student
from tests.methods.build import make, pooled
from tests.report.factory import trained
from tests.train.tiny_study import CPU, IMAGES, trial

METHODS = "vanilla,crd(nce_k=16),icd,ab"
NETWORKS = "resnet20:resnet8"


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [found for each in (value.values() if isinstance(value, dict) else value) for found in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.usefixtures("_threads")
def test_a_tiny_comparison_writes_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    words = f"--pair {NETWORKS} --methods {METHODS} --images synthetic:200 --size 8 --batch 8 --warmup 1 --steps 2"
    words += f" --repetitions 1 --workers 0 --threads 1 --growth 1,3 --device cpu --json {path}"
    assert compare.main(words.split()) == 0
    figures = json.loads(path.read_text("utf-8"))
    names = METHODS.split(",")
    assert {name: group["methods"] for name, group in figures["groups"].items()} == {
        "all": names,
        "without crd": [names[0], *names[2:]],
        "first 1": names[1:2],
        "first 3": names[1:],
    }
    assert list(figures["conventional_step_seconds"]) == names
    assert set(figures["cohort_step_seconds"]) == {"whole", "data", "teacher", "optimizers", "students"}
    assert set(figures["peak_memory_mib"]) == {"conventional", "cohort"}
    assert figures["left_out"] == {}
    assert figures["machine"]["threads"] == 1
    for part in ("groups", "conventional_step_seconds", "cohort_step_seconds", "peak_memory_mib"):
        assert all(math.isfinite(each) and each > 0 for each in numbers(figures[part])), part
    for group in figures["groups"].values():
        own, ours = (group[f"{side}_images_per_second"]["median"] for side in ("conventional", "cohort"))
        assert group["ratio"]["median"] == pytest.approx(ours / own)


def test_more_steps_than_an_epoch_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--images", "synthetic:200", "--size", "8", "--steps", "3", "--device", "cpu"]) == 2
    assert "fit into 200 images" in capsys.readouterr().err


def test_methods_that_cannot_train_the_pair_are_left_out_by_name(tmp_path: Path) -> None:
    words = "--pair resnet20:wrn_16_2 --methods kd,fsp --images synthetic:100 --size 8 --warmup 1 --batch 8"
    args = compare.parser().parse_args([*words.split(), "--device", "cpu"])
    bench = compare.Bench(args, compare.load(args.images, args.size), tmp_path, CPU)
    assert [each.method for each in bench.trials] == ["kd"]
    assert list(bench.left_out) == ["fsp"]


def test_both_contrastive_losses_agree() -> None:
    stream = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=stream)

    labels, indices = torch.arange(30) % 3, torch.tensor([4, 11, 0, 23])
    negatives = torch.stack([(labels != labels[i]).nonzero().flatten()[torch.randperm(20)[:7]] for i in indices])
    shapes = Shapes(FeatureShapes((), False, 5), FeatureShapes((), False, 6), 3, labels)
    theirs = conventional.Contrast(CRDHyper(nce_k=7), shapes, torch.Generator()).double()
    ours = make("crd", {"nce_k": 7}, student=5, teacher=6, labels=labels, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict(), strict=False)  # the normalisers apart: both find theirs
    ours.negatives = lambda batch, generator: negatives
    rows = torch.cat([indices[:, None], negatives], dim=1)
    batch = conventional.Contrasted(torch.empty(4, 0), labels[indices], indices, rows=rows)
    for _ in range(2):  # the second step reads what the first one wrote
        student, teacher = pooled(draw(4, 5)), pooled(draw(4, 6))
        losses = []
        for method in (theirs, ours):
            method.zero_grad()
            losses.append(torch.stack(list(method.losses(student, teacher, batch, 1).values())).sum())
            losses[-1].backward()
            with torch.no_grad():
                method.after_backward(batch)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
        for left, right in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert left.grad is not None
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-10, atol=1e-12)
        for name in ("memory_student", "memory_teacher"):
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-10, atol=1e-12)


def test_negatives_are_other_classes_and_the_image_comes_first() -> None:
    photographs = conventional.ContrastedPhotographs(IMAGES, 1, k=150)
    labels = IMAGES.train.labels
    image, label, index, rows = photographs[7]
    assert image.shape == (3, 8, 8)
    assert (label, index, rows[0], len(rows)) == (int(labels[7]), 7, 7, 151)
    assert (labels[rows[1:]] != label).all()
    assert len(set(rows.tolist())) == 151  # all 150 images of other classes
    assert (
        len(conventional.ContrastedPhotographs(IMAGES, 1, k=160)[7][3]) == 161
    )  # more than there are: with repetition


def test_a_vanilla_step_is_the_same_on_both_sides() -> None:
    plain = trial("vanilla", teacher=None)
    size, classes = IMAGES.info.size, IMAGES.info.classes
    own = features(plain.arch, classes, size)
    student = Student(plain, Shapes(own, own, classes, IMAGES.train.labels, info(plain.arch).family), CPU)
    run = conventional.Run(plain, IMAGES, None, CPU)
    run.network.load_state_dict(student.network.state_dict())
    stream = torch.Generator().manual_seed(0)
    images, nothing = torch.randn(16, 3, size, size, generator=stream), torch.empty(0)
    batch = Batch(images, torch.arange(16) % classes, torch.arange(16))
    student.begin(1, replayed=False)
    student.step(batch, Output(nothing, (), nothing))
    run.step(batch)
    assert run.meters.losses == pytest.approx([student.check()["ce"]], rel=1e-5)
    for left, right in zip(run.network.parameters(), student.network.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # float32, other memory order


def test_precisions_are_compared_seed_by_seed() -> None:
    def records(precision: str, *values: float) -> list[Record]:
        pupils = [trained("kd", value, seed, precision=precision) for seed, value in enumerate(values)]
        return [*pupils, trained(VANILLA, 90.0, pair=("", "resnet56"), precision=precision)]

    found = precision.paired(records("bf16", 71.0, 69.0, 73.0), records("fp32", 70.0, 70.0, 70.0))
    assert list(found) == ["kd"]  # the teacher's own trial is no student's
    assert found["kd"]["difference"]["each"] == [1.0, -1.0, 3.0]
    assert found["kd"]["difference"]["mean"] == 1.0
    assert found["kd"]["difference"]["high"] == pytest.approx(1 + 4.302653 * 2 / math.sqrt(3))  # t(0.975; 2)
    with pytest.raises(ValueError, match="two seeds"):
        precision.difference([1.0], [1.0])


@pytest.mark.usefixtures("_threads")
def test_every_method_is_measured_beside_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    words = f"--pair {NETWORKS} --methods {METHODS} --images synthetic:200 --size 8 --batch 8 --warmup 1 --steps 2"
    assert marginal.main([*words.split(), "--threads", "1", "--device", "cpu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text("utf-8"))
    assert set(figures["methods"]) == set(METHODS.split(",")) - {VANILLA}
    for found in figures["methods"].values():
        own, parts = (found[key]["median"] for key in ("step_seconds", "parts_seconds"))
        plain = figures["plain_seconds"]["median"]
        assert found["over_plain"] == pytest.approx(own / plain)
        assert found["over_plain_and_parts"] == pytest.approx(own / (plain + parts))
    assert figures["methods"]["crd(nce_k=16)"]["extra_mib"] > 2 * 200 * 128 * 4 / 2**20  # two memories
    assert marginal.main([*words.replace("vanilla,", "").split(), "--device", "cpu"]) == 2


def test_parts_alone_have_the_losses_of_the_whole_step() -> None:
    def student() -> Student:
        pupil = trial("nst")
        own, seen = (features(arch, IMAGES.info.classes, 8) for arch in (pupil.arch, "wrn_16_1"))
        found = Student(pupil, Shapes(own, seen, IMAGES.info.classes, IMAGES.train.labels), CPU)
        found.begin(1, replayed=False)
        return found

    stream = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(16, 3, 8, 8, generator=stream), torch.arange(16) % 4, torch.arange(16))
    with torch.no_grad():
        target = build("wrn_16_1", 4, 8)(batch.images)
    whole, parts = student(), student()
    parts.network = marginal.Given(parts.network, batch.images, parts)
    for each in (whole, parts):
        each.step(batch, target)
    assert whole.check() == pytest.approx(parts.check())
    assert parts.check().keys() == {"ce", "discrepancy"}
