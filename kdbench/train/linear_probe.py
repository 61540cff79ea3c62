"""Train linear classifiers on frozen backbones; the protocols are in `plan/probe_protocols.py`."""

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
from kdbench.train.optim import build_optimizer, learning_rate, load_optimizer, set_learning_rate


class ProbedNetwork(nn.Module):
    """A trained network with a new classifier, which works in float32."""

    def __init__(self, backbone: nn.Module, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(embedding_dim, classes)
        nn.init.normal_(self.head.weight, 0.0, 0.01)  # as in the authors' script
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Output:
        embedding = self.embed(images)
        with torch.autocast(images.device.type, enabled=False):
            return Output(self.head(embedding), (), embedding)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """The embeddings of the backbone, float32 [B, D]."""
        output: Output = self.backbone(images, pre_activations=False)
        return output.embedding.float()


class ProbeTrainer:
    """One linear probe in training. It does not depend on the probes that are trained with it."""

    def __init__(self, probe: LinearProbe, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.probe, self.device = probe, device
        source, seed = probe.source, probe.seed
        self.normalization = info(source.arch).normalization
        embedding_dim = features(source.arch, source.data.classes, source.data.size).embedding_dim
        backbone = restore(source.arch, source.data.classes, source.data.size, weights)
        if not probe.bn_train_mode:
            backbone = fold(backbone.eval())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("probe", probe.data.content, seed))
            network = ProbedNetwork(backbone, embedding_dim, probe.data.classes)
        self.network = on_device(network, device)
        self.optimizer = build_optimizer(probe.recipe, self.network.head.parameters(), probe.lr)
        self.timer = Timer(device)
        self.seconds = 0.0
        self.epoch = 0  # the last one begun
        self.loss: float | None = None

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings of a batch in evaluation mode, float32 [B, D]."""
        self.network.eval()
        with self.timer.running(), autocast(self.device, self.probe.precision):
            return self.network.embed(batch.images_for(self.normalization))

    def step(self, batch: Batch, number: int) -> None:
        """One optimizer step with batch norms in training mode: they update their running statistics."""
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
        """Prepare the learning rate, the random stream and the mean loss."""
        self._sum, self._steps = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self._dropout = derive_seed("probe dropout", self.probe.fingerprint, epoch)
        self.epoch = epoch
        set_learning_rate(self.optimizer, learning_rate(self.probe.recipe, self.probe.lr, epoch))

    def end_epoch(self) -> None:
        """Compute the mean loss. Raises Diverged if it is not finite."""
        self.loss = self._sum.item() / self._steps
        if not torch.isfinite(self._sum):
            raise Diverged(f"the loss was not finite in epoch {self.epoch}")

    def accuracy(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Top-1 and top-5 accuracy in percent, in evaluation mode."""
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
        """Everything needed to resume training after this epoch."""
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
        """Resume from `state()`. Raises an exception of any type if it belongs to another probe."""
        if state["fingerprint"] != self.probe.fingerprint:
            raise ValueError("the state belongs to another probe")
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.epoch, self.seconds, self.loss = state["epoch"], state["seconds"], state["loss"]


class StackedProbes:
    """Probes with equal shapes and schedules, whose classifiers are trained together on precomputed features.

    They share only the order of their batches. Up to rounding, the result of each is the same as if trained alone.
    """

    def __init__(self, trainers: Sequence[ProbeTrainer]) -> None:
        self.trainers, first = trainers, trainers[0]
        self.probe, self.device = first.probe, first.device
        heads = [trainer.network.head for trainer in trainers]
        shape = (len(trainers), self.probe.views, self.probe.data.train, heads[0].in_features)
        self.features = torch.zeros(shape, device=self.device)  # [S, V, N, D]
        self.weight = torch.stack([head.weight.detach() for head in heads]).requires_grad_()  # [S, C, D]
        self.bias = torch.stack([head.bias.detach() for head in heads]).unsqueeze(1).requires_grad_()  # [S, 1, C]
        self.errors: dict[ProbeTrainer, Exception] = {}

    def embed(self, view: int, batch: Batch) -> None:
        """Store the features of a batch of training images under a view; errors are kept per probe."""
        for index, trainer in enumerate(self.trainers):
            if trainer not in self.errors:
                try:
                    self.features[index, view, batch.indices] = trainer.embed(batch)
                except Exception as error:
                    self.errors[trainer] = error

    def fit(self, labels: Tensor, end_epoch: Callable[[int, int], None]) -> None:
        """Train all classifiers, with a random view of each image in each epoch.

        `labels` are those of the training images, int64 [N]. After each epoch, `end_epoch` gets its number and that of
        the probes.
        """
        probe, recipe, timer = self.probe, self.probe.recipe, Timer(self.device)
        students, views, count, embedding_dim = self.features.shape
        optimizer = build_optimizer(recipe, [self.weight, self.bias], probe.lr)
        features = self.features.view(students, views * count, embedding_dim)
        losses = []
        with timer.running():
            for epoch in range(1, recipe.epochs + 1):
                set_learning_rate(optimizer, learning_rate(recipe, probe.lr, epoch))
                stream = torch.Generator().manual_seed(
                    derive_seed("probe batches", probe.data.content, probe.seed, epoch)
                )
                order = torch.randperm(count, generator=stream)
                view = torch.randint(views, (count,), generator=stream)
                rows, targets = (view * count + order).to(self.device), labels[order].to(self.device)
                total = torch.zeros(students, dtype=torch.float64, device=self.device)
                steps = count // recipe.batch_size  # the last incomplete batch is dropped, as in training
                for start in range(0, steps * recipe.batch_size, recipe.batch_size):
                    batch = slice(start, start + recipe.batch_size)
                    logits = torch.baddbmm(
                        self.bias, features[:, rows[batch]], self.weight.transpose(1, 2)
                    )  # [S, B, C]
                    target = targets[batch].expand(students, -1)
                    loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(dim=1)  # [S]
                    loss.sum().backward()  # the sum, so that each classifier gets its own gradient unscaled
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    total += loss.detach().double()
                losses.append(total / steps)
                end_epoch(epoch, students)
        self._unstack(torch.stack(losses), timer.total() / students)

    @torch.no_grad()
    def _unstack(self, losses: Tensor, seconds: float) -> None:
        """Give each trainer its classifier, loss and time; `losses` are the means of all epochs, [E, S]."""
        finite = losses.isfinite().cpu()
        for index, trainer in enumerate(self.trainers):
            trainer.network.head.weight.copy_(self.weight[index])
            trainer.network.head.bias.copy_(self.bias[index, 0])
            trainer.epoch, trainer.loss = len(losses), float(losses[-1, index])
            trainer.seconds += seconds
            if not finite[:, index].all():
                epoch = int(finite[:, index].int().argmin()) + 1
                self.errors.setdefault(trainer, Diverged(f"the loss was not finite in epoch {epoch}"))
