"""A linear classifier on a frozen backbone, by either protocol (see plan/protocols.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.core.linear_probe import LinearProbe
from kdbench.core.seeding import derive_seed
from kdbench.data.dataset import Batch
from kdbench.models import features, info, restore
from kdbench.models.folding import fold
from kdbench.models.output import Output
from kdbench.train.device import on_device
from kdbench.train.evaluate import autocast, evaluate
from kdbench.train.failures import Diverged
from kdbench.train.meters import Timer
from kdbench.train.optim import learning_rate, sgd


class ProbedNetwork(nn.Module):
    """A trained network whose classifier is another one, in float32."""

    def __init__(self, backbone: nn.Module, embedding: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(embedding, classes)
        nn.init.normal_(self.head.weight, 0.0, 0.01)  # as the authors' script begins
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Output:
        embedding = self.embed(images)
        with torch.autocast(images.device.type, enabled=False):
            return Output(self.head(embedding), (), embedding)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """What the network's own classifier read, float32 [B, D]."""
        output: Output = self.backbone(images, pre_activations=False)
        return output.embedding.float()


class ProbeTrainer:
    """One transfer in training. Nothing here depends on other transfers."""

    def __init__(self, probe: LinearProbe, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.probe, self.device = probe, device
        source, seed = probe.source, probe.seed
        self.normalization = info(source.arch).normalization
        width = features(source.arch, source.data.classes, source.data.size).embedding_dim
        backbone = restore(source.arch, source.data.classes, source.data.size, weights)
        if not probe.bn_train_mode:
            backbone = fold(backbone.eval())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("probe", probe.data.content, seed))
            network = ProbedNetwork(backbone, width, probe.data.classes)
        self.network = on_device(network, device)
        self.optimizer = sgd(probe.recipe, self.network.head.parameters(), probe.lr)
        self.timer = Timer(device)
        self.seconds = 0.0
        self.epoch = 0  # the last whole one
        self.loss: float | None = None

    def embed(self, batch: Batch) -> Tensor:
        """Features of a batch in evaluation mode, float32 [B, D]."""
        self.network.eval()
        with self.timer.running(), autocast(self.device, self.probe.precision):
            return self.network.embed(batch.images_for(self.normalization))

    def step(self, batch: Batch, number: int) -> None:
        """One step of a protocol in which batch norms work with batch statistics and their running ones move."""
        self.network.train()
        with self.timer.running():
            torch.manual_seed((self._dropout + number) % 2**63)
            with autocast(self.device, self.probe.precision):
                embedding = self.network.embed(batch.images_for(self.normalization))
            loss = F.cross_entropy(self.network.head(embedding), batch.labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._sum += loss.detach().double()
            self._steps += 1

    def begin_epoch(self, epoch: int) -> None:
        self._sum, self._steps = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self._dropout = derive_seed("probe dropout", self.probe.fingerprint, epoch)
        self.epoch = epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.probe.recipe, self.probe.lr, epoch)

    def end_epoch(self) -> None:
        """Raises Diverged if the epoch's loss was not finite."""
        self.loss = self._sum.item() / self._steps
        if not torch.isfinite(self._sum):
            raise Diverged(f"the loss was not finite in epoch {self.epoch}")

    def accuracy(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Top-1 and top-5 in per cent, in evaluation mode."""
        self.network.eval()

        def predict(batch: Batch) -> Tensor:
            with autocast(self.device, self.probe.precision):
                output: Output = self.network(batch.images_for(self.normalization))
            return output.logits

        with self.timer.running():
            accuracy = evaluate({self: predict}, batches, self.device)[self]
        self.seconds += self.timer.total()
        if isinstance(accuracy, Exception):
            raise accuracy
        return accuracy.top1, accuracy.top5

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        self.seconds += self.timer.total()
        return {
            "fingerprint": self.probe.fingerprint,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "loss": self.loss,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises an exception of any kind if it is not this transfer's."""
        if state["fingerprint"] != self.probe.fingerprint:
            raise ValueError("the state is another transfer's")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.loss = state["epoch"], state["seconds"], state["loss"]


class StackedProbes:
    """Probes whose classifiers have one shape and one schedule, trained at once on features that are computed once.

    They share nothing but their batches; to rounding, each comes out as it would alone.
    """

    def __init__(self, probes: Sequence[ProbeTrainer]) -> None:
        self.probes, first = probes, probes[0]
        self.recipe, data = first.probe.recipe, first.probe.data
        heads = [probe.network.head for probe in probes]
        shape = (len(probes), first.probe.views, data.train, heads[0].in_features)
        self.features = torch.zeros(shape, device=first.device)  # [S, V, N, D]
        self.weight = torch.stack([head.weight.detach() for head in heads]).requires_grad_()  # [S, C, D]
        self.bias = torch.stack([head.bias.detach() for head in heads]).unsqueeze(1).requires_grad_()  # [S, 1, C]
        self.problems: dict[ProbeTrainer, Exception] = {}

    def embed(self, view: int, batch: Batch) -> None:
        """Keep the features of a batch of training images; a network that fails leaves the others."""
        for place, probe in enumerate(self.probes):
            if probe not in self.problems:
                try:
                    self.features[place, view, batch.indices] = probe.embed(batch)
                except Exception as error:
                    self.problems[probe] = error

    def fit(self, labels: Tensor, advance: Callable[[int], None]) -> None:
        """Train the classifiers, each image in a view drawn anew each epoch; `advance` is called after each."""
        transfer, timer = self.probes[0].probe, Timer(self.probes[0].device)
        recipe, (students, views, count, width) = self.recipe, self.features.shape
        optimizer = sgd(recipe, [self.weight, self.bias], transfer.lr)
        flat, losses = self.features.view(students, views * count, width), []
        with timer.running():
            for epoch in range(1, recipe.epochs + 1):
                optimizer.param_groups[0]["lr"] = learning_rate(recipe, transfer.lr, epoch)
                stream = torch.Generator().manual_seed(
                    derive_seed("probe batches", transfer.data.content, transfer.seed, epoch)
                )
                order = torch.randperm(count, generator=stream)
                view = torch.randint(views, (count,), generator=stream)
                rows, own = (view * count + order).to(flat.device), labels[order].to(flat.device)
                total = torch.zeros(students, dtype=torch.float64, device=flat.device)
                steps = count // recipe.batch_size  # the last incomplete batch is dropped, as in training
                for start in range(0, steps * recipe.batch_size, recipe.batch_size):
                    here = slice(start, start + recipe.batch_size)
                    logits = torch.baddbmm(self.bias, flat[:, rows[here]], self.weight.transpose(1, 2))  # [S, B, C]
                    target = own[here].expand(students, -1)
                    each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(dim=1)  # [S]
                    each.sum().backward()  # a sum: no student's gradient is scaled
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    total += each.detach().double()
                losses.append(total / steps)
                advance(students)
        self._part(torch.stack(losses), timer.total() / students)

    @torch.no_grad()
    def _part(self, losses: Tensor, seconds: float) -> None:
        """Give each probe its classifier back; `losses` are those of every epoch, [E, S]."""
        finite = losses.isfinite().cpu()
        for place, probe in enumerate(self.probes):
            probe.network.head.weight.copy_(self.weight[place])
            probe.network.head.bias.copy_(self.bias[place, 0])
            probe.epoch, probe.loss = len(losses), float(losses[-1, place])
            probe.seconds += seconds
            if not finite[:, place].all():
                epoch = int(finite[:, place].int().argmin()) + 1
                self.problems.setdefault(probe, Diverged(f"the loss was not finite in epoch {epoch}"))
