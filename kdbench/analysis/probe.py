"""A linear classifier on a frozen trunk, by either protocol (see plan/protocols.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batches import Batch
from kdbench.models import features, info, restore
from kdbench.models.output import Output
from kdbench.spec import Transfer, derive_seed
from kdbench.train.environment import on_device
from kdbench.train.evaluate import accuracy, autocast
from kdbench.train.schedule import learning_rate
from kdbench.train.stopwatch import Stopwatch
from kdbench.train.student import Diverged


class Probed(nn.Module):
    """A trained network whose classifier is another one, in float32."""

    def __init__(self, trunk: nn.Module, embedding: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False)
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
        output: Output = self.trunk(images, preact=False)
        return output.embedding.float()


class Probe:
    """One transfer in training. Nothing here depends on other transfers."""

    def __init__(self, transfer: Transfer, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.transfer, self.device = transfer, device
        source, seed = transfer.source, transfer.seed
        self.statistics = info(source.arch).statistics
        width = features(source.arch, source.data.classes, source.data.size).embedding
        trunk = restore(source.arch, source.data.classes, source.data.size, weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("probe", transfer.data.content, seed))
            network = Probed(trunk, width, transfer.data.classes)
        self.network = on_device(network, device)
        recipe = transfer.recipe
        self.optimiser = torch.optim.SGD(
            self.network.head.parameters(),
            lr=transfer.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.clock = Stopwatch(device)
        self.seconds = 0.0
        self.epoch = 0  # the last whole one
        self.loss: float | None = None
        self._features: list[list[Tensor]] = []  # per view, per batch: [B, D]
        self._labels: list[Tensor] = []

    def embed(self, view: int, batch: Batch) -> None:
        """Keep the features of a batch of training images, which must come view by view and in order."""
        self.network.eval()
        with self.clock.running(), autocast(self.device, self.transfer.precision):
            if view == len(self._features):
                self._features.append([])
            self._features[view].append(self.network.embed(batch.images_for(self.statistics)))
            if view == 0:
                self._labels.append(batch.labels)

    def fit(self) -> None:
        """Train the classifier on the features that were kept, each image in a view drawn anew each epoch.

        Raises Diverged.
        """
        features = torch.stack([torch.cat(parts) for parts in self._features])  # [V, N, D]
        labels = torch.cat(self._labels)
        self._features, self._labels = [], []
        count, batch = len(labels), self.transfer.recipe.batch_size
        with self.clock.running():
            for epoch in range(1, self.transfer.recipe.epochs + 1):
                self.begin(epoch)
                stream = torch.Generator().manual_seed(
                    derive_seed("probe batches", self.transfer.data.content, self.transfer.seed, epoch)
                )
                order = torch.randperm(count, generator=stream)
                view = torch.randint(len(features), (count,), generator=stream)
                index, view = order.to(self.device), view.to(self.device)
                for start in range(0, count - batch + 1, batch):  # the last incomplete one is dropped, as in training
                    here = index[start : start + batch]
                    self._learn(features[view[here], here], labels[here])
                self.end()

    def step(self, batch: Batch, number: int) -> None:
        """One step of a protocol in which batch norms work with batch statistics and their running ones move."""
        self.network.train()
        with self.clock.running():
            torch.manual_seed((self._dropout + number) % 2**63)
            with autocast(self.device, self.transfer.precision):
                embedding = self.network.embed(batch.images_for(self.statistics))
            self._learn(embedding, batch.labels)

    def _learn(self, embedding: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.network.head(embedding), labels)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._sum += loss.detach().double()
        self._steps += 1

    def begin(self, epoch: int) -> None:
        self._sum, self._steps = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self._dropout = derive_seed("probe dropout", self.transfer.fingerprint, epoch)
        self.epoch = epoch
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.transfer.recipe, self.transfer.lr, epoch)

    def end(self) -> None:
        """Raises Diverged if the epoch's loss was not finite."""
        self.loss = self._sum.item() / self._steps
        if not torch.isfinite(self._sum):
            raise Diverged(f"the loss was not finite in epoch {self.epoch}")

    def accuracy(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Top-1 and top-5 in per cent, in evaluation mode."""
        with self.clock.running():
            found = accuracy(self.network, batches, self.device, self.transfer.precision, self.statistics)
        self.seconds += self.clock.total()
        return found

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        self.seconds += self.clock.total()
        return {
            "fingerprint": self.transfer.fingerprint,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "loss": self.loss,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises an exception of any kind if it is not this transfer's."""
        if state["fingerprint"] != self.transfer.fingerprint:
            raise ValueError("the state is another transfer's")
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.seconds, self.loss = state["epoch"], state["seconds"], state["loss"]
