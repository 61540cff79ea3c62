"""timm's models in the real trainer, at 64x64, as teacher and as student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdbench import models
from kdbench.core.data import DataInfo
from kdbench.core.record import Outcome
from kdbench.core.trial import Trial, Value
from kdbench.data.dataset import Split
from kdbench.data.resident import ResidentDataset
from kdbench.distill import Shapes, registry
from tests.train import tiny_study

ARCHS = [
    "timm/resnet18",
    "timm/mobilenetv3_small_100",
    "timm/convnext_atto",
    "timm/vit_tiny_patch16_224",
    "timm/efficientnet_b0",
    "timm/regnety_002",
]
METHODS = ["kd", "at", "rkd", "sp", "crd", "icd"]
CLASSES, TRAIN, TEST, SIZE = 4, 12, 4, 64
RECIPE = replace(tiny_study.RECIPE, label="toy", epochs=1, batch_size=6, size=SIZE, milestones=(1.0,))


def dataset() -> ResidentDataset:
    stream = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=stream)
        return Split(pixels, torch.arange(count) % CLASSES)

    info = DataInfo("toy64", "1" * 64, CLASSES, TRAIN, TEST, SIZE, (0.5,) * 3, (0.25,) * 3, flip=True)
    return ResidentDataset(info, split(TRAIN), split(TEST), tuple("abcd"))


def trial(expression: str, teacher: str, student: str) -> Trial:
    base = tiny_study.trial(expression, arch=student, teacher=teacher)
    return replace(base, data=dataset().info, recipe=RECIPE)


def train(folder: Path, teacher: str, student: str, *methods: str) -> dict[str, Outcome]:
    cohort = tiny_study.cohort(*(trial(method, teacher, student) for method in methods))
    torch.manual_seed(0)
    weights = {key: dict(models.build(teacher, CLASSES, SIZE).state_dict()) for key in cohort.sources}
    outcomes = tiny_study.run_cohort(folder, cohort, weights, dataset=dataset())
    return {outcome.trial.method: outcome for outcome in outcomes}


def reason(method: str, teacher: str, student: str, **settings: Value) -> str | None:
    shapes = [models.features(arch, CLASSES, SIZE) for arch in (student, teacher)]
    labels = torch.arange(TRAIN) % CLASSES
    return registry.incompatibility(
        method, settings, Shapes(shapes[0], (shapes[1],), CLASSES, labels, models.info(student).family)
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_trained_in_both_roles(tmp_path: Path, arch: str, role: str) -> None:
    teacher, student = (arch, "resnet8") if role == "teacher" else ("resnet8", arch)
    assert not any(reason(method, teacher, student) for method in METHODS)
    for method, outcome in train(tmp_path, teacher, student, *METHODS).items():
        assert outcome.status == "done", f"{method}: {outcome.reason}"
        assert outcome.weights is not None
        assert all(tensor.isfinite().all() for tensor in outcome.weights.values() if tensor.is_floating_point())


def test_a_pair_of_both_kinds(tmp_path: Path) -> None:
    outcomes = train(tmp_path, "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_100", *METHODS)
    assert {outcome.status for outcome in outcomes.values()} == {"done"}


def test_what_they_do_not_support_says_why() -> None:
    assert (
        reason("ab", "timm/resnet18", "resnet8") == "a network of this pair has no feature maps before the activation"
    )
    assert reason("fsp", "timm/resnet18", "timm/convnext_atto") is not None
    assert reason("fsp", "timm/resnet34", "timm/resnet18") is None


def test_a_trial_is_the_same_alone_and_in_a_cohort(tmp_path: Path) -> None:
    """Random parts of timm's layers (stochastic depth, dropout) are keyed like all others."""
    pair = "resnet8", "timm/efficientnet_b0"
    together = train(tmp_path / "a", *pair, "kd", "sp")
    alone = train(tmp_path / "b", *pair, "sp")
    assert tiny_study.equal(together["sp"], alone["sp"])


def test_batches_are_normalized_as_each_network_asks() -> None:
    normalization = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    loader = dataset().loader(batch_size=6, pad=4, device=tiny_study.CPU, seed=0, normalizations=[normalization])
    for batch in (next(loader.epoch(1)), next(loader.evaluation(4))):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
        pixels = batch.images * 0.25 + 0.5  # the data set's mean and deviation undone
        torch.testing.assert_close(batch.images_for(normalization), (pixels - mean) / std, rtol=1e-5, atol=1e-5)
        assert batch.images_for(None) is batch.images


def test_a_teacher_sees_images_in_its_own_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.train import teacher as teacher_module

    normalization = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    info = replace(models.info("resnet8"), normalization=normalization)
    monkeypatch.setattr(teacher_module, "info", lambda _name: info)
    torch.manual_seed(0)
    network = models.build("resnet8", CLASSES, SIZE)
    teacher = teacher_module.Teacher(network, "resnet8", tiny_study.CPU, "fp32")
    loader = dataset().loader(batch_size=6, pad=4, device=tiny_study.CPU, seed=0, normalizations=[normalization])
    batch = next(loader.epoch(1))
    with torch.no_grad():
        expected = network(batch.images_for(normalization)).logits
    torch.testing.assert_close(teacher(batch).logits, expected, rtol=1e-4, atol=1e-5)  # its batch norms are folded
