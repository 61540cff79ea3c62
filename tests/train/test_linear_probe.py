"""Linear probes: backbones stay frozen, probes do not depend on each other, and every architecture has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.core.jobs import ProbeJob
from kdbench.core.linear_probe import LinearProbe
from kdbench.data.dataset import Batch, Split, digest
from kdbench.data.resident import ResidentDataset
from kdbench.plan.probe_protocols import PROTOCOLS, protocol
from kdbench.train.linear_probe import ProbeTrainer
from kdbench.train.probe_group import ProbeGroupTrainer
from tests.analysis.tiny_probes import TARGET, linear_probe, network_weights, train
from tests.train.tiny_study import CPU


def trained(probe: LinearProbe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of a probed network before and after training."""
    trainer = ProbeTrainer(probe, network_weights(probe.source), CPU)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    group = ProbeGroupTrainer(ProbeJob((probe,)), TARGET, CPU, lambda event: None)
    train = group._train_on_batches if probe.bn_train_mode else group._train_on_features
    ((returned, error),) = train([trainer])
    assert error is None
    assert returned is trainer
    return before, trainer.network.state_dict()


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_only_the_head_is_trained_and_running_statistics_follow_the_protocol(name: str) -> None:
    before, after = trained(linear_probe("wrn_16_1", name))
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    running_statistics = {key for key in after if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {"head.weight", "head.bias"} <= changed
    assert changed - {"head.weight", "head.bias"} == (running_statistics if name == "authors" else set())


def test_protocols_equal_the_published_ones() -> None:
    authors, frozen = (protocol(name, epochs=None, size=32) for name in ("authors", "frozen"))
    recipe = authors.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.milestones, recipe.gamma) == (120, 64, (30.0, 60.0, 90.0), 0.1)
    assert (recipe.lr, recipe.small_lr, recipe.momentum, recipe.weight_decay) == (0.05, 0.01, 0.9, 5e-4)
    assert (recipe.pad, authors.bn_train_mode) == (4, True)
    assert (frozen.recipe.weight_decay, frozen.bn_train_mode, frozen.recipe.epochs) == (0.0, False, 120)
    short = protocol("authors", epochs=8, size=32).recipe
    assert (short.label, short.epochs, short.milestones) == ("authors@8", 8, (2.0, 4.0, 6.0))
    assert linear_probe("MobileNetV2").lr == 0.01
    assert linear_probe().lr == 0.05
    with pytest.raises(UserError, match="unknown protocol 'frozzen': did you mean 'frozen'"):
        protocol("frozzen", epochs=None, size=32)
    with pytest.raises(UserError, match="--epochs must be at least 1"):
        protocol("frozen", epochs=0, size=32)


def separable() -> ResidentDataset:
    """Eight patterns under strong noise, so that probes classify most images correctly, but not all."""
    stream = torch.Generator().manual_seed(3)
    patterns = torch.randint(0, 256, (8, 8, 8, 3), generator=stream).float()

    def split(count: int) -> Split:
        labels = torch.arange(count) % 8
        noise = 90 * torch.randn(count, 8, 8, 3, generator=stream)
        return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    train, test = split(1600), split(800)
    content = digest(train.images, train.labels, test.images, test.labels)
    info = replace(TARGET.info, classes=8, train=1600, test=800, content=content)
    return ResidentDataset(info, train, test, tuple("abcdefgh"))


def test_the_frozen_probe_agrees_with_logistic_regression(tmp_path: Path) -> None:
    target = separable()
    probe = linear_probe("wrn_16_1", epochs=None, target=target)
    (record,) = train([probe], tmp_path, target)
    trainer = ProbeTrainer(probe, network_weights(probe.source), CPU)
    trainer.network.eval()

    def features(batches: Iterator[Batch]) -> np.ndarray:
        return torch.cat([trainer.network.embed(batch.images) for batch in batches]).numpy()

    loader = target.loader(batch_size=64, pad=0, device=CPU, seed=0)
    train_features, test_features = features(loader.training_images(500)), features(loader.evaluation(500))
    mean, scale = train_features.mean(0), train_features.std(0) + 1e-6
    model = LogisticRegression(C=1e4, max_iter=300)
    model.fit((train_features - mean) / scale, target.labels.numpy())
    top1 = 100 * model.score((test_features - mean) / scale, target.test_labels.numpy())
    assert 50 < top1 < 99
    assert record.top1 == pytest.approx(top1, abs=2.0)  # percentage points


def test_a_probe_is_the_same_alone_in_a_group_and_resumed(tmp_path: Path) -> None:
    for name in PROTOCOLS:
        probe, companion = linear_probe("resnet8", name, epochs=3), linear_probe("wrn_16_1", name, epochs=3)
        (alone,) = train([probe], tmp_path / f"{name} alone")
        together = train([companion, probe], tmp_path / f"{name} together")
        assert [record.probe.source.arch for record in together] == ["wrn_16_1", "resnet8"]
        assert together[1].top1 == alone.top1
        assert together[1].loss == pytest.approx(alone.loss, rel=1e-5 if name == "frozen" else 0)
        folder = tmp_path / f"{name} interrupted"
        with pytest.raises(KeyboardInterrupt):
            train([probe], folder, stop_after=1)
        assert len(list(folder.glob("*"))) == (
            name == "authors"
        )  # frozen probes are so quick that they have no checkpoints
        (resumed,) = train([probe], folder)
        assert (resumed.top1, resumed.loss) == (alone.top1, alone.loss)
        assert not list(folder.glob("*"))


def test_a_checkpoint_with_the_rate_as_a_number_still_fits() -> None:
    """As they were written before the rate was a tensor."""
    probe = linear_probe("resnet8", "authors", epochs=3)
    trainer, other = (ProbeTrainer(probe, network_weights(probe.source), CPU) for _ in range(2))
    trainer.begin_epoch(1)
    state = trainer.state()
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = 0.05
    other.load_state(state)
    other.begin_epoch(2)
    assert other.optimizer.param_groups[0]["lr"].dtype == torch.float64


def test_seeds_and_views_change_the_probe(tmp_path: Path) -> None:
    losses = {
        (seed, views): train([linear_probe(seed=seed, views=views)], tmp_path)[0].loss
        for seed in (0, 1)
        for views in (1, 2, 10)
    }
    assert len(set(losses.values())) == 6
    assert linear_probe(views=2).recipe.label == "frozen@2,views=2"
    assert linear_probe(views=2).fingerprint != linear_probe().fingerprint
    assert linear_probe("resnet8", "authors", views=2).fingerprint == linear_probe("resnet8", "authors").fingerprint


def test_a_failed_probe_leaves_the_others(tmp_path: Path) -> None:
    def weights(probe: LinearProbe) -> dict[str, Tensor]:
        state = network_weights(probe.source)
        if probe.source.arch == "wrn_16_1":
            del state["bn1.weight"]
        if probe.seed == 5:
            state["bn1.running_mean"] = torch.full_like(state["bn1.running_mean"], float("nan"))
            state["bn1.weight"] = torch.full_like(state["bn1.weight"], float("nan"))
        return state

    for name in PROTOCOLS:
        intact, damaged = linear_probe("resnet8", name), linear_probe("wrn_16_1", name)
        nonfinite = replace(intact, source=replace(intact.source, seed=5))
        probes = [damaged, nonfinite, intact]
        loaded = {probe.fingerprint: weights(probe) for probe in probes}
        records = {outcome.probe.fingerprint: outcome for outcome in train(probes, tmp_path, weights=loaded)}
        assert records[damaged.fingerprint].status == "failed"
        assert "loading state_dict" in (records[damaged.fingerprint].reason or "")
        assert records[nonfinite.fingerprint].status == "diverged"
        assert "not finite in epoch 1" in (records[nonfinite.fingerprint].reason or "")
        assert records[nonfinite.fingerprint].top1 is None
        assert records[intact.fingerprint].status == "done"


ARCHS = [*models.names(), "timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_has_probes(arch: str, tmp_path: Path) -> None:
    stream = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(
            torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=stream), torch.arange(count) % 3
        )

    info = replace(TARGET.info, classes=3, train=64, test=10, size=32)
    target = ResidentDataset(info, split(64), split(10), ("a", "b", "c"))
    for name in PROTOCOLS:
        (record,) = train([linear_probe(arch, name, epochs=1, target=target)], tmp_path, target)
        assert (record.status, record.reason) == ("done", None)
        assert record.top1 is not None
        assert record.loss is not None
        assert np.isfinite(record.loss)


def test_a_target_smaller_than_a_batch_is_refused() -> None:
    few = replace(TARGET, info=replace(TARGET.info, train=63, label="few"))
    with pytest.raises(UserError, match="few has 63 training images, less than one batch of 64"):
        linear_probe(target=few)
