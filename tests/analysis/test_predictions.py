"""Predictions of trained networks: those of the evaluation during training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdbench.analysis.predictions import ModelLoader
from kdbench.core.record import Outcome, Record
from kdbench.core.trial import VANILLA, TeacherSource, Trial
from kdbench.distill import Context, Distiller, Hyper, register, registry
from kdbench.models import Output, restore
from kdbench.results import Store
from tests.train import tiny_study
from tests.train.tiny_study import CPU, DATASET, network_weights

ARCHS = ("resnet14", "wrn_16_1")


class _Classifier(Distiller[Hyper]):
    """Replaces the student's classifier by its own."""

    def __init__(self, hyper: Hyper, context: Context) -> None:
        super().__init__(hyper, context)
        self.classifier = nn.Linear(64, context.classes)

    def predict(self, student: Output) -> Tensor:
        logits: Tensor = self.classifier(student.embedding.float())
        return logits


@pytest.fixture(autouse=True)
def _method() -> Iterator[None]:
    register("classifier", Hyper, paper="-")(_Classifier)
    yield
    del registry._METHODS["classifier"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def loader(store: Store) -> ModelLoader:
    return ModelLoader(store, DATASET, CPU)


def save_teacher(store: Store, arch: str) -> TeacherSource:
    """A teacher's record with the weights that the tiny study uses."""
    trial = tiny_study.trial(VANILLA, arch=arch, teacher=None)
    weights = {f"network.{name}": tensor for name, tensor in network_weights(arch).items()}
    store.save(Outcome(trial, "done", weights=weights), {})
    return TeacherSource(arch, trial=trial.fingerprint)


def trial(store: Store, method: str, *archs: str) -> Trial:
    """A trial whose teachers have records."""
    return replace(tiny_study.trial(method), teachers=tuple(save_teacher(store, arch) for arch in archs))


def trained(store: Store, folder: Path, method: str) -> Record:
    (outcome,) = tiny_study.train(folder / "checkpoints", trial(store, method, "wrn_16_1")).values()
    return store.save(outcome, {})


def accuracy(logits: Tensor) -> float:
    return 100 * (logits.argmax(dim=1) == DATASET.test.labels).double().mean().item()


@pytest.mark.parametrize("method", ["kd", "classifier"])
def test_a_student_predicts_as_when_it_was_evaluated(
    method: str, store: Store, loader: ModelLoader, tmp_path: Path
) -> None:
    record = trained(store, tmp_path, method)
    predictions = loader.student(record)
    assert predictions.logits.shape == (len(DATASET.test), DATASET.info.classes)
    assert predictions.embedding.shape == (len(DATASET.test), 64)
    assert accuracy(predictions.logits) == record.top1

    if method == "classifier":
        weight, bias = (store.weights(record, "deploy")[f"classifier.{name}"] for name in ("weight", "bias"))
    else:
        assert not store.weights(record, "deploy")
        weight, bias = (store.weights(record)[f"fc.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(predictions.logits, predictions.embedding @ weight.T + bias)


@torch.no_grad()
def test_several_teachers_predict_their_mean_class_probabilities(store: Store, loader: ModelLoader) -> None:
    together = loader.teacher(trial(store, "kd", *ARCHS))
    first, second = (loader.teacher(trial(store, "kd", arch)) for arch in ARCHS)
    mean = (first.logits.softmax(dim=1) + second.logits.softmax(dim=1)) / 2
    torch.testing.assert_close(together.logits.exp(), mean)
    torch.testing.assert_close(together.embedding, torch.cat([first.embedding, second.embedding], dim=1))

    network = restore("resnet14", DATASET.info.classes, DATASET.info.size, network_weights("resnet14")).eval()
    pixels = DATASET.test.images.permute(0, 3, 1, 2) / 255
    output: Output = network((pixels - 0.5) / 0.25)
    torch.testing.assert_close(first.logits, output.logits, rtol=1e-5, atol=1e-5)


def test_missing_teachers_are_errors(loader: ModelLoader) -> None:
    vanilla = tiny_study.trial(VANILLA, teacher=None)
    with pytest.raises(ValueError, match=f"^{vanilla.id} has no teacher$"):
        loader.teacher(vanilla)
    with pytest.raises(ValueError, match=r"^the teacher wrn_16_1 of .* has no record$"):
        loader.teacher(tiny_study.trial("kd"))
    with pytest.raises(ValueError, match="is missing or was changed"):
        loader.teacher(replace(tiny_study.trial("kd"), teachers=(TeacherSource("resnet14", file="/none", sha256="0"),)))
