"""The benchmarks measure what they claim: both sides train alike, and every figure is written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import compare, conventional, epochs, floor, kernels, marginal, on_gpu, precision, probes
from kdbench.core.record import Record
from kdbench.core.trial import VANILLA
from kdbench.distill import Batch, Context, Output, Requires, Shapes, Step, View
from kdbench.methods.crd import CRD, CRDHyper
from kdbench.methods.kd import KD
from kdbench.models import FeatureShapes, build, features, info
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.student import Student
from tests.report.factory import trained
from tests.train.tiny_study import CPU, DATASET, trial

METHODS = "vanilla,crd(nce_k=16),icd,ab"
NETWORKS = "resnet20:resnet8"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.usefixtures("_threads")
def test_a_tiny_comparison_writes_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = f"--pair {NETWORKS} --methods {METHODS} --images synthetic:200 --size 8 --batch 8 --warmup 1 --steps 2"
    argv += f" --repetitions 1 --workers 0 --threads 1 --growth 1,3 --device cpu --json {path}"
    assert compare.main(argv.split()) == 0
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
        assert all(math.isfinite(number) and number > 0 for number in numbers(figures[part])), part
    for group in figures["groups"].values():
        left, right = (group[f"{side}_images_per_second"]["median"] for side in ("conventional", "cohort"))
        assert group["ratio"]["median"] == pytest.approx(right / left)


def test_more_steps_than_an_epoch_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--images", "synthetic:200", "--size", "8", "--steps", "3", "--device", "cpu"]) == 2
    assert "fit into 200 images" in capsys.readouterr().err


def bench(folder: Path, *argv: str) -> compare.Bench:
    small = ["--images", "synthetic:100", "--size", "8", "--warmup", "1", "--batch", "8", "--device", "cpu"]
    args: Namespace = compare.build_parser().parse_args([*argv, *small])
    dataset = compare.load(args.images, args.size)
    return compare.Bench(args, dataset, compare.catalog_of_both(dataset), folder, CPU)


def test_methods_that_cannot_train_the_pair_are_left_out_by_name(tmp_path: Path) -> None:
    chosen = bench(tmp_path, "--pair", "resnet20:wrn_16_2", "--methods", "kd,fsp")
    assert [trial.method for trial in chosen.trials] == ["kd"]
    assert list(chosen.left_out) == ["fsp"]


def test_methods_beyond_the_conventional_loop_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KD, "requires", classmethod(lambda cls, hyper: Requires(views=(View("crop"),))))
    chosen = bench(tmp_path, "--pair", NETWORKS, "--methods", "kd,ab")  # ab requires no more than pre-activations
    assert [trial.method for trial in chosen.trials] == ["ab"]
    assert chosen.left_out == {"kd": "the conventional loop does not compute what it requires"}


@pytest.mark.usefixtures("_threads")
def test_pairs_with_several_teachers_train_on_both_sides(tmp_path: Path) -> None:
    several = bench(
        tmp_path, "--pair", "resnet20+wrn_16_1:resnet8", "--methods", "kd", "--steps", "1", "--workers", "0"
    )
    assert [len(trial.teachers) for trial in several.trials] == [2]
    assert several.conventional_seconds(several.trials[0]) > 0
    assert several.cohort_seconds(several.trials)[0] > 0
    assert several.part_seconds().keys() == {"data", "teacher", "optimizers"}


def test_both_contrastive_losses_agree() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def output_with_embedding(embedding: torch.Tensor) -> Output:
        return Output(embedding.new_zeros(len(embedding), 2), (), embedding)

    labels, indices = torch.arange(30) % 3, torch.tensor([4, 11, 0, 23])
    negatives = torch.stack([(labels != labels[i]).nonzero().flatten()[torch.randperm(20)[:7]] for i in indices])
    student, teacher = FeatureShapes((), False, 5), FeatureShapes((), False, 6)
    context = Context(student, (teacher,), 3, labels, generator=torch.Generator())
    gathered = conventional.GatheredCRD(CRDHyper(nce_k=7), context).double()
    crd = CRD(CRDHyper(nce_k=7), context).double()
    state = {f"bank.{name}" if "memory" in name else name: value for name, value in gathered.state_dict().items()}
    missing = crd.load_state_dict(state, strict=False).missing_keys
    assert missing == ["bank.Z_student", "bank.Z_teacher"]  # both set them from their first batch
    crd.bank.sample_negatives = lambda batch, generator: negatives
    rows = torch.cat([indices[:, None], negatives], dim=1)
    batch = conventional.ContrastiveBatch(torch.empty(4, 0), labels[indices], indices, rows=rows)
    for _ in range(2):  # the second step reads what the first one wrote
        step = Step(batch, output_with_embedding(draw(4, 5)), (output_with_embedding(draw(4, 6)),), epoch=1, epochs=1)
        losses = []
        for method in (gathered, crd):
            method.zero_grad()
            losses.append(torch.stack(list(method.losses(step).values())).sum())
            losses[-1].backward()
            with torch.no_grad():
                method.after_backward(step)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
        for left, right in zip(gathered.parameters(), crd.parameters(), strict=True):
            assert left.grad is not None
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-10, atol=1e-12)
        for name in ("memory_student", "memory_teacher"):
            torch.testing.assert_close(getattr(gathered, name), getattr(crd.bank, name), rtol=1e-10, atol=1e-12)


def test_negatives_are_of_other_classes_and_the_image_comes_first() -> None:
    images = conventional.ImagesWithNegatives(DATASET, 1, k=150)
    labels = DATASET.train.labels
    image, label, index, rows = images[7]
    assert image.shape == (3, 8, 8)
    assert (label, index, rows[0], len(rows)) == (int(labels[7]), 7, 7, 151)
    assert (labels[rows[1:]] != label).all()
    assert len(set(rows.tolist())) == 151  # all 150 images of other classes
    more = conventional.ImagesWithNegatives(DATASET, 1, k=160)  # more than there are: with repetition
    assert len(more[7][3]) == 161


def test_a_vanilla_step_is_the_same_on_both_sides() -> None:
    vanilla = trial("vanilla", teacher=None)
    size, classes = DATASET.info.size, DATASET.info.classes
    shapes = features(vanilla.arch, classes, size)
    student = Student(vanilla, Shapes(shapes, (shapes,), classes, DATASET.train.labels, info(vanilla.arch).family), CPU)
    trainer = conventional.ConventionalTrainer(vanilla, DATASET, (), CPU)
    trainer.network.load_state_dict(student.network.state_dict())
    images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(16) % classes, torch.arange(16))
    student.begin_epoch(1)
    student.step(StepInputs(batch, (), {}, {}))
    trainer.step(batch)
    assert trainer.meters.losses == pytest.approx([student.end_epoch()["ce"]], rel=1e-5)
    for left, right in zip(trainer.network.parameters(), student.network.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)  # float32, other memory order


def test_precisions_are_compared_seed_by_seed() -> None:
    def records(precision: str, *values: float) -> list[Record]:
        students = [trained("kd", value, seed, precision=precision) for seed, value in enumerate(values)]
        return [*students, trained(VANILLA, 90.0, pair=("", "resnet56"), precision=precision)]

    methods = precision.paired(records("bf16", 71.0, 69.0, 73.0), records("fp32", 70.0, 70.0, 70.0))
    assert list(methods) == ["kd"]  # the teacher's own trial is not a student's
    assert methods["kd"]["difference"]["each"] == [1.0, -1.0, 3.0]
    assert methods["kd"]["difference"]["mean"] == 1.0
    assert methods["kd"]["difference"]["high"] == pytest.approx(1 + 4.302653 * 2 / math.sqrt(3))  # t(0.975; 2)
    with pytest.raises(ValueError, match="two seeds"):
        precision.difference([1.0], [1.0])


@pytest.mark.usefixtures("_threads")
def test_every_method_is_measured_with_and_without_its_network(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = f"--pair {NETWORKS} --methods {METHODS} --images synthetic:200 --size 8 --batch 8 --warmup 1 --steps 2"
    assert marginal.main([*argv.split(), "--threads", "1", "--device", "cpu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text("utf-8"))
    assert set(figures["methods"]) == set(METHODS.split(",")) - {VANILLA}
    plain = figures["plain_seconds"]["median"]
    for row in figures["methods"].values():
        step, parts = (row[key]["median"] for key in ("step_seconds", "parts_seconds"))
        assert row["over_plain"] == pytest.approx(step / plain)
        assert row["over_plain_and_parts"] == pytest.approx(step / (plain + parts))
        assert len(row["step_seconds"]["each"]) == len(row["parts_seconds"]["each"]) == 2  # the warm-up is not counted
    assert figures["methods"]["crd(nce_k=16)"]["extra_mib"] > 2 * 200 * 128 * 4 / 2**20  # two memories
    assert marginal.main([*argv.replace("vanilla,", "").split(), "--device", "cpu"]) == 2


def test_a_step_without_the_network_has_the_same_losses() -> None:
    def student() -> Student:
        nst = trial("nst")
        shapes, teacher_shapes = (features(arch, DATASET.info.classes, 8) for arch in (nst.arch, "wrn_16_1"))
        student = Student(nst, Shapes(shapes, (teacher_shapes,), DATASET.info.classes, DATASET.train.labels), CPU)
        student.begin_epoch(1)
        return student

    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.arange(16) % 4, torch.arange(16))
    with torch.no_grad():
        teacher_output = build("wrn_16_1", 4, 8)(batch.images)
    with_network, without_network = student(), student()
    without_network.network = marginal.ConstantOutput(without_network, batch.images)
    inputs = StepInputs(batch, (teacher_output,), {}, {})
    with_network.step(inputs)
    without_network.step(inputs)
    terms = without_network.end_epoch()
    assert with_network.end_epoch() == pytest.approx(terms)
    assert terms.keys() == {"ce", "discrepancy"}


@pytest.mark.slow
def test_probes_of_a_few_students_are_timed(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = ["--students", "2", "--images", "64", "--repetitions", "1", "--device", "cpu", "--json", str(path)]
    assert probes.main(argv) == 0
    figures = json.loads(path.read_text("utf-8"))
    assert figures["settings"]["epochs"] == 120
    assert figures["seconds"]["median"] > 0


def test_the_measurements_of_speed_run() -> None:
    """Each once, on tiny images; how long they take is judged by whoever compares two runs."""
    argv = ["benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "--size", "8", "--batch", "8"]
    argv += ["--methods", "kd,crd(nce_k=16)", "--pairs", NETWORKS, "--device", "cpu", "--threads", "1"]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout
    assert "15 passed" in process.stdout


@pytest.mark.usefixtures("_threads")
def test_whole_epochs_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = f"--pair {NETWORKS} --methods vanilla,kd,ab --images synthetic:64 --size 8 --batch 16 --epochs 2"
    argv += f" --repetitions 1 --workers 0 --threads 1 --device cpu --json {path}"
    assert epochs.main(argv.split()) == 0
    figures = json.loads(path.read_text("utf-8"))
    assert figures["methods"] == ["vanilla", "kd"]
    assert figures["left_out"] == {"ab": "it has a stage before the main one"}
    assert figures["images"] == {"train": 64, "test": 12}
    for side in ("conventional", "cohort"):
        assert len(figures[f"{side}_seconds"]["each"]) == 2
    left, right = (figures[f"{side}_seconds"]["each"] for side in ("conventional", "cohort"))
    assert figures["ratio"]["each"] == pytest.approx([a / b for a, b in zip(left, right, strict=True)])


@pytest.mark.usefixtures("_threads")
def test_the_floor_is_what_the_layers_take_alone(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    argv = f"--pair {NETWORKS} --methods kd,icd --images synthetic:64 --size 8 --batch 16 --repetitions 1 --steps 1"
    assert floor.main([*argv.split(), "--threads", "1", "--device", "cpu", "--json", str(path)]) == 0
    figures = json.loads(path.read_text("utf-8"))
    of = {arch: floor.layers(arch, 16, 100, 8, trained=True) for arch in NETWORKS.split(":")}
    assert figures["layers"]["all"] == len(of["resnet20"]) + 2 * len(of["resnet8"])
    assert figures["share_of_the_floor"]["median"] > 0
    first, *_, last = of["resnet8"]
    assert (first.images, first.weight, first.first) == ((16, 3, 8, 8), (16, 3, 3, 3), True)
    assert (last.images, last.weight, last.first) == ((16, 64), (100, 64), False)


@pytest.mark.parametrize("trained", [False, True])
def test_layers_alone_do_the_work_of_training(trained: bool) -> None:
    """The operations of the forward and backward pass of a network, counted."""
    operations: list[str] = []

    class Notes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operations.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    network = build("resnet8", 100, 8).requires_grad_(trained)
    with Notes():
        logits = network(torch.zeros(4, 3, 8, 8)).logits
        if trained:
            logits.sum().backward()
    expected = [operations.count(name) for name in ("convolution", "convolution_backward")]
    operations.clear()
    works = [layer.work(CPU, torch.float32) for layer in floor.layers("resnet8", 4, 100, 8, trained=trained)]
    operations.clear()
    with Notes():
        for work in works:
            work()
    assert [operations.count(name) for name in ("convolution", "convolution_backward")] == expected


@pytest.mark.usefixtures("_threads")
def test_the_operations_of_a_step_are_counted(tmp_path: Path) -> None:
    counts = {}
    for methods in ("kd", "kd,icd"):
        path = tmp_path / "figures.json"
        argv = f"--pair {NETWORKS} --methods {methods} --images synthetic:64 --size 8 --batch 16 --device cpu"
        assert kernels.main([*argv.split(), "--threads", "1", "--json", str(path)]) == 0
        figures = json.loads(path.read_text("utf-8"))
        counts[methods] = figures["plain"]["operations"]
        assert figures["replayed"] is None  # nothing is, on a CPU
    network = len(floor.layers("resnet8", 16, 100, 8, trained=True))
    assert counts["kd,icd"] - counts["kd"] > 3 * network  # a student more: forward, and backward to weights and inputs


def test_pieces_are_joined_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, teacher = tmp_path / "images", tmp_path / "resnet20.pth"
    images.mkdir()
    (images / "train.parquet").write_bytes(os.urandom(3 * 2**20))
    teacher.write_bytes(b"weights")
    pieces = on_gpu.cut([images, teacher], tmp_path / "pieces", mib=1)
    assert [piece.name.split("-", 1)[1] for piece in pieces] == [f"{number}-of-4" for number in range(1, 5)]
    state = tmp_path / "state"
    with pytest.raises(ValueError, match="no images"):
        on_gpu.staged(state)
    other = on_gpu.cut([teacher], tmp_path / "pieces", mib=1)
    assert on_gpu.stage(other, state)  # which leaves the pieces of another cut alone
    for piece in pieces[2:] + pieces[:1]:
        assert not on_gpu.stage([piece], state)
    assert on_gpu.stage(pieces[1:2], state)
    dataset, teachers = on_gpu.staged(state)
    assert dataset == f"parquet:{(state / 'staged' / 'images').resolve()}"
    assert (state / "staged/images/train.parquet").read_bytes() == (images / "train.parquet").read_bytes()
    assert (teachers / "resnet20.pth").read_bytes() == b"weights"
    assert on_gpu.main(["--stage", str(teacher), "--state", str(state)]) == 2
    pieces[1].write_bytes(b"")
    assert on_gpu.main(["--stage", *map(str, pieces), "--state", str(state)]) == 2
    assert "bring them again" in capsys.readouterr().err
    assert not on_gpu.stage(pieces[:1], state)
    for wrong in (["--cut", str(teacher), "--mib", "0"], ["--cut", "/nope"], ["--proof", "--seconds", "0"]):
        assert on_gpu.main([*wrong, "--state", str(state), "--out", str(tmp_path / "out")]) == 2


def test_parts_on_a_gpu_are_written_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(argv: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int, str]:
        written = json.loads((tmp_path / "proof.json").read_text("utf-8")) if seen else {}
        assert set(seen) <= set(written)
        seen[:] = [name for name in written if name not in ("machine", "date")] or ["machine"]
        return (3 if argv[-1] == "waits" else 0), "output"

    monkeypatch.setattr(on_gpu, "run", run)
    assert on_gpu.main(["--proof", "--out", str(tmp_path), "--state", str(tmp_path / "state")]) == 1
    figures = json.loads((tmp_path / "proof.json").read_text("utf-8"))
    assert figures["replayed as plain, part 5"]["exit_code"] == 0
    assert figures["a method that waits"]["exit_code"] == 3
    assert "host" not in figures["machine"]
    assert on_gpu.main(["--study", "--out", str(tmp_path), "--state", str(tmp_path / "state")]) == 2
