"""A frozen backbone stays frozen, a transfer is its own, and every architecture has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.core.linear_probe import LinearProbe
from kdbench.data.dataset import Dataset, Split, digest
from kdbench.data.resident import sequential_batches
from kdbench.plan.probe_protocols import PROTOCOLS, protocol
from kdbench.train import probe_group
from kdbench.train.checkpoint import Checkpoints
from kdbench.train.linear_probe import ProbeTrainer
from tests.analysis.build import TARGET, Quiet, made, run, weights
from tests.train.tiny_study import CPU


def trained(each: LinearProbe) -> tuple[ProbeTrainer, dict[str, Tensor]]:
    """A probe after its training, and its network's tensors before."""
    probe = ProbeTrainer(each, weights(each.source.arch, each.source), CPU)
    before = {name: tensor.clone() for name, tensor in probe.network.state_dict().items()}
    group = probe_group._Group(TARGET, Checkpoints(Path("/nonexistent")), CPU, Quiet())
    group.normalization = set()
    group.checkpoints.save = lambda *_: None  # type: ignore[method-assign]
    ((found, problem),) = (group._moving if each.bn_train_mode else group._fixed)([probe])
    assert problem is None
    return found, before


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_what_a_protocol_moves(name: str) -> None:
    probe, before = trained(made("wrn_16_1", name))
    after = probe.network.state_dict()
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    running_statistics = {key for key in after if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert {"head.weight", "head.bias"} <= moved
    assert moved - {"head.weight", "head.bias"} == (running_statistics if name == "authors" else set())


def test_the_protocols_are_the_published_ones() -> None:
    authors, frozen = (protocol(name, epochs=None, size=32) for name in ("authors", "frozen"))
    recipe = authors.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.milestones, recipe.gamma) == (120, 64, (30.0, 60.0, 90.0), 0.1)
    assert (recipe.lr, recipe.small_lr, recipe.momentum, recipe.weight_decay) == (0.05, 0.01, 0.9, 5e-4)
    assert (recipe.pad, authors.bn_train_mode) == (4, True)
    assert (frozen.recipe.weight_decay, frozen.bn_train_mode, frozen.recipe.epochs) == (0.0, False, 120)
    short = protocol("authors", epochs=8, size=32).recipe
    assert (short.label, short.epochs, short.milestones) == ("authors@8", 8, (2.0, 4.0, 6.0))
    assert made("MobileNetV2").lr == 0.01
    assert made().lr == 0.05
    with pytest.raises(UserError, match="unknown protocol 'frozzen': did you mean 'frozen'"):
        protocol("frozzen", epochs=None, size=32)
    with pytest.raises(UserError, match="--epochs must be at least 1"):
        protocol("frozen", epochs=0, size=32)


def separable() -> Dataset:
    """Eight patterns under strong noise: a probe finds most classes, and not all."""
    stream = torch.Generator().manual_seed(3)
    patterns = torch.randint(0, 256, (8, 8, 8, 3), generator=stream).float()

    def split(count: int) -> Split:
        labels = torch.arange(count) % 8
        noise = 90 * torch.randn(count, 8, 8, 3, generator=stream)
        return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    train, test = split(1600), split(800)
    content = digest(train.images, train.labels, test.images, test.labels)
    about = replace(TARGET.info, classes=8, train=1600, test=800, content=content)
    return Dataset(about, train, test, tuple("abcdefgh"))


def test_the_frozen_probe_agrees_with_logistic_regression(tmp_path: Path) -> None:
    target = separable()
    each = made("wrn_16_1", epochs=None, target=target)
    (record,) = run([each], tmp_path, target)
    probe = ProbeTrainer(each, weights("wrn_16_1", each.source), CPU)
    probe.network.eval()

    def features(split: Split) -> np.ndarray:
        batches = sequential_batches(split, target.info, 500, CPU)
        return torch.cat([probe.network.embed(batch.images) for batch in batches]).numpy()

    mean, scale = features(target.train).mean(0), features(target.train).std(0) + 1e-6
    exact = LogisticRegression(C=1e4, max_iter=300)
    exact.fit((features(target.train) - mean) / scale, target.train.labels.numpy())
    theirs = 100 * exact.score((features(target.test) - mean) / scale, target.test.labels.numpy())
    assert 50 < theirs < 99
    assert record.top1 == pytest.approx(theirs, abs=2.0)  # points


def test_companions_do_not_matter_and_neither_does_an_interruption(tmp_path: Path) -> None:
    for name in PROTOCOLS:
        each, other = made("resnet8", name, epochs=3), made("wrn_16_1", name, epochs=3)
        (alone,) = run([each], tmp_path / f"{name} alone")
        together = run([other, each], tmp_path / f"{name} together")
        assert [record.probe.source.arch for record in together] == ["wrn_16_1", "resnet8"]
        assert together[1].top1 == alone.top1
        assert together[1].loss == pytest.approx(alone.loss, rel=1e-5 if name == "frozen" else 0)
        folder = tmp_path / f"{name} interrupted"
        with pytest.raises(KeyboardInterrupt):
            run([each], folder, watcher=Quiet(stop_after=1))
        assert len(list(folder.glob("*"))) == (name == "authors")  # a frozen probe is too short to be kept
        (resumed,) = run([each], folder)
        assert (resumed.top1, resumed.loss) == (alone.top1, alone.loss)
        assert not list(folder.glob("*"))


def test_seeds_and_views_change_the_probe(tmp_path: Path) -> None:
    losses = {
        (seed, views): run([made(seed=seed, views=views)], tmp_path)[0].loss for seed in (0, 1) for views in (1, 2, 10)
    }
    assert len(set(losses.values())) == 6
    assert made(views=2).recipe.label == "frozen@2,views=2"
    assert made(views=2).fingerprint != made().fingerprint
    assert made("resnet8", "authors", views=2).fingerprint == made("resnet8", "authors").fingerprint


def test_what_breaks_one_transfer_leaves_the_others(tmp_path: Path) -> None:
    broken = made("wrn_16_1", "authors")

    def some(each: LinearProbe) -> Mapping[str, Tensor]:
        if each is broken:
            raise ValueError("its weights are damaged")
        found = weights(each.source.arch, each.source)
        if each.source.seed == 5:
            found["bn1.running_mean"] = torch.full_like(found["bn1.running_mean"], float("nan"))
            found["bn1.weight"] = torch.full_like(found["bn1.weight"], float("nan"))
        return found

    for name in PROTOCOLS:
        broken = made("wrn_16_1", name)
        poisoned = replace(made("resnet8", name), source=replace(made("resnet8", name).source, seed=5))
        found = list(
            probe_group.train_probes(
                [broken, poisoned, made("resnet8", name)], TARGET, some, Checkpoints(tmp_path), CPU, {}, Quiet()
            )
        )
        by_place = {(record.probe.source.arch, record.probe.seed): record for record in found}
        assert by_place["wrn_16_1", 0].status == "failed"
        assert "its weights are damaged" in (by_place["wrn_16_1", 0].reason or "")
        assert by_place["resnet8", 5].status == "diverged"
        assert "not finite in epoch 1" in (by_place["resnet8", 5].reason or "")
        assert by_place["resnet8", 5].top1 is None
        assert by_place["resnet8", 0].status == "done"


ARCHS = [*models.names(), "timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_transfers(arch: str, tmp_path: Path) -> None:
    stream = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        return Split(
            torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=stream), torch.arange(count) % 3
        )

    about = replace(TARGET.info, classes=3, train=64, test=10, size=32)
    target = Dataset(about, split(64), split(10), ("a", "b", "c"))
    for name in PROTOCOLS:
        (record,) = run([made(arch, name, epochs=1, target=target)], tmp_path, target)
        assert (record.status, record.reason) == ("done", None)
        assert record.top1 is not None
        assert record.loss is not None
        assert np.isfinite(record.loss)


def test_a_target_smaller_than_a_batch_is_refused() -> None:
    few = replace(TARGET, info=replace(TARGET.info, train=63, label="few"))
    with pytest.raises(UserError, match="few has 63 training images, less than one batch of 64"):
        made(target=few)
