"""One student in training: network, method, optimizer, meters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.core.record import EpochMetrics
from kdbench.core.seeding import derive_seed
from kdbench.core.trial import Trial, Value
from kdbench.data.resident import Batch
from kdbench.distill.distiller import Distiller, Shapes
from kdbench.distill.objective import objective
from kdbench.distill.registry import distiller, hyper_of
from kdbench.models import build, info
from kdbench.models.output import Output
from kdbench.train.backbone import backbone_modules
from kdbench.train.cuda_graph import CudaGraphStep
from kdbench.train.device import on_device
from kdbench.train.evaluate import accuracy, autocast
from kdbench.train.meters import Timer
from kdbench.train.optim import learning_rate, sgd

NEVER = 2**62
TIMED = 24
"""Steps of a replayed epoch up to which students take turns and are timed; after these they run at the same time."""


class Diverged(Exception):
    """The loss, the gradient or the weights stopped being finite; the message says where."""


class NonfiniteGradient(Diverged):
    """The gradient stopped being finite while every term of the loss was; `nonfinite_terms` finds out which did it."""

    def __init__(self, epoch: int, step: int, terms: list[str]) -> None:
        self.epoch, self.step, self.terms = epoch, step, terms  # the step from 0
        super().__init__(self.words(f"while every term was: {', '.join(terms)}"))

    def words(self, why: str) -> str:
        return f"the gradient was not finite from {name_of(self.epoch)}, step {self.step + 1} on ({why})"


def name_of(epoch: int) -> str:
    """`epoch 3`, or `pretraining epoch 3` for -3."""
    return f"epoch {epoch}" if epoch >= 0 else f"pretraining epoch {-epoch}"


def widened(tensor: Tensor) -> Tensor:
    """In float32; a map's gradient comes back in the layout that the convolutions before it work in."""
    wide = tensor.float()
    if wide.ndim == 4 and wide.requires_grad:
        wide.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))
    return wide


class PretrainingStage:
    """A student's pretraining: what it trains, and how far it is."""

    def __init__(self, trunk: list[nn.Module], optimizer: torch.optim.SGD, epochs: int) -> None:
        self.trunk, self.optimizer, self.epochs = trunk, optimizer, epochs
        self.losses: list[float] = []  # mean of each epoch so far

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])


class Student:
    """Nothing here depends on other students: every random stream is keyed by what it is for (see `derive_seed`)."""

    def __init__(self, trial: Trial, shapes: Shapes, device: torch.device) -> None:
        self.trial, self.device = trial, device
        self.normalization = info(trial.arch).normalization
        self.epochs: list[EpochMetrics] = []
        self.epoch = self.steps = 0
        self._kept: dict[str, Any] | None = None  # how far an epoch was when its state was kept
        self.clock = Timer(device)
        self._key = (trial.method, trial.teacher.arch if trial.teacher else "", trial.arch, trial.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("weights", trial.arch, trial.seed))
            network = build(trial.arch, trial.data.classes, trial.data.size)
            torch.manual_seed(derive_seed("helpers", *self._key))
            generator = torch.Generator(device)
            method, hyper = distiller(trial.base), hyper_of(trial.base, trial.settings)
            if reason := method.supports(hyper, shapes):
                raise ValueError(reason)
            self.method: Distiller[Any] = method(hyper, shapes, generator)
        self.network = on_device(network, device)
        self.method = self.method.to(device)
        self.optimizer = sgd(trial.recipe, [*self.network.parameters(), *self.method.parameters()], trial.lr)
        self.first = self._first_stage()

    def _first_stage(self) -> PretrainingStage | None:
        plan = self.method.pretraining()
        if plan is None:
            return None
        trunk = backbone_modules(self.network, self.trial.data.size, self.device) if plan.student else []
        parameters = [each for module in trunk for each in module.parameters(recurse=False)]
        parameters += [each for module in plan.modules for each in module.parameters()]
        optimizer = sgd(self.trial.recipe, parameters, self.trial.lr if plan.lr is None else plan.lr)
        return PretrainingStage(trunk, optimizer, self.trial.recipe.pretraining_epochs)

    def begin(self, epoch: int, replayed: bool) -> None:
        """Make ready for an epoch: mode, rate, random streams, meters. Pretraining epochs are -1, -2, ..."""
        self.epoch, self.steps = epoch, 0
        self._earlier, self._timed_from = 0.0, 0  # seconds of the steps before this one
        self._replay = CudaGraphStep(self.trial.method, self._compute, self.device) if replayed else None
        self.method.generator.manual_seed(derive_seed("draws", *self._key, epoch))
        self._dropout = derive_seed("dropout", *self._key, epoch)
        self._names: list[str] = []
        self._sums = torch.zeros((), device=self.device)
        self._first_bad = torch.zeros((), device=self.device)
        self._at = torch.zeros((), dtype=torch.int64, device=self.device)  # the step, where recordings can read it
        if self._kept and self._kept["epoch"] == epoch:
            self._go_on(self._kept)
        self._kept = None
        self.method.train()
        if epoch < 0:
            assert self.first is not None
            self.network.eval()
            for module in self.first.trunk:
                module.train()
            return
        self.network.train()
        self.rate = learning_rate(self.trial.recipe, self.trial.lr, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def step(self, batch: Batch, teacher: Output) -> None:
        """One optimizer step on one batch; nothing is read back from the device. Its tensors are ready after `join`."""
        torch.manual_seed((self._dropout + self.steps) % 2**63)
        self.steps += 1
        if self._replay is None:
            with self.clock.running():
                self._compute(batch, teacher)
        elif self._replay.plain or self._replay.calls >= TIMED:
            self._replay(self.method.generator, batch, teacher)
        else:  # alone, so that its time is its own
            with self.clock.running():
                self._replay(self.method.generator, batch, teacher)
                self._replay.join()

    def join(self) -> None:
        """What follows waits for the step."""
        if self._replay:
            self._replay.join()

    def _compute(self, batch: Batch, teacher: Output) -> None:
        """A step's work on the device."""
        terms, optimizer = self._terms(batch, teacher)
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            if self.epoch > 0:
                self.method.after_backward(batch)
            self._meter(terms, self._clip(optimizer))
        optimizer.step()
        self.network.zero_grad(set_to_none=True)
        self.method.zero_grad(set_to_none=True)

    def _terms(self, batch: Batch, teacher: Output) -> tuple[dict[str, Tensor], torch.optim.SGD]:
        """What the stage at hand minimises, and by which optimizer."""
        with autocast(self.device, self.trial.precision):
            output: Output = self.network(
                batch.images_for(self.normalization), pre_activations=self.method.pre_activations
            )
        output = output.convert(widened)
        if self.epoch < 0:
            assert self.first is not None
            return self.method.pretraining_losses(output, teacher, batch, -self.epoch), self.first.optimizer
        return objective(self.method, output, teacher, batch, self.epoch), self.optimizer

    def nonfinite_terms(self, batch: Batch, teacher: Output) -> list[str]:
        """The terms whose own gradient would not be finite in the next step, which is not taken."""
        torch.manual_seed((self._dropout + self.steps) % 2**63)
        terms, optimizer = self._terms(batch, teacher)
        trained = [each for group in optimizer.param_groups for each in group["params"]]
        found = []
        for name, term in terms.items():
            if term.requires_grad:
                gradients = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
                if not all(each.isfinite().all() for each in gradients if each is not None):
                    found.append(name)
        return found

    def _clip(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of all gradients, which are scaled down to the recipe's largest norm, if it has one."""
        trained = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in trained])
        if self.trial.recipe.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, self.trial.recipe.max_grad_norm, norm)
        return norm

    def _meter(self, terms: dict[str, Tensor], norm: Tensor) -> None:
        values = torch.stack([*terms.values(), norm]).detach().double()  # [terms + 1]
        if not self._names:
            self._names = list(terms)
            self._sums = torch.zeros_like(values)
            self._first_bad = torch.full_like(values, NEVER)
        self._sums += values
        self._first_bad.copy_(torch.minimum(self._first_bad, torch.where(values.isfinite(), NEVER, self._at)))
        self._at += 1

    def student_seconds(self) -> float:
        """Of the epoch: its mean step times its steps; waits for the device."""
        mean = self.clock.mean()
        if not mean and self._timed_from:  # replayed steps are not timed one by one
            mean = self._earlier / self._timed_from
        return self._earlier + mean * (self.steps - self._timed_from)

    def end_pretraining_epoch(self) -> None:
        """Note the epoch's loss; its time is no part of a training epoch's. Raises Diverged."""
        assert self.first is not None
        self.first.losses.append(sum(self.check().values()))
        self.clock.mean()

    def check(self) -> dict[str, float]:
        """The epoch's mean of each term. Raises Diverged, naming the terms that broke first and the step."""
        *bad, bad_gradient = self._first_bad.tolist()
        if (first := min(*bad, bad_gradient)) < NEVER:
            when = f"{name_of(self.epoch)}, step {int(first) + 1}"
            names = ", ".join(name for name, step in zip(self._names, bad, strict=True) if step == first)
            if names:
                raise Diverged(f"the loss was not finite from {when} on (term: {names})")
            raise NonfiniteGradient(self.epoch, int(first), self._names)
        if not torch.stack([each.detach().float().abs().sum() for each in self.network.parameters()]).isfinite().all():
            raise Diverged(f"the weights were not finite after {name_of(self.epoch)}")
        means = (self._sums[:-1] / self.steps).tolist()
        return dict(zip(self._names, means, strict=True))

    def accuracy(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Top-1 and top-5 in per cent."""
        return accuracy(self.network, batches, self.device, self.trial.precision, self.normalization)

    def extra_info(self) -> dict[str, Value]:
        """What the method says of itself. Raises TypeError if that cannot be recorded."""
        found = self.method.extra_info()
        for name, value in found.items():
            if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not isfinite(value)):
                raise TypeError(f"extra_info(): {name} must be a finite number, a word, true or false, not {value!r}")
        if self.first:
            found = {**found, "pretraining_epochs": self.first.epochs, "pretraining_loss": self.first.losses[-1]}
        return dict(found)

    def cost(self) -> dict[str, Value]:
        """What the method holds beside its student."""
        trained = sum(each.numel() for each in self.method.parameters())
        held = sum(each.nbytes for each in (*self.method.parameters(), *self.method.buffers()))
        return {"extra_parameters": trained, "extra_mib": held / 2**20}

    def is_next(self, epoch: int) -> bool:
        """Whether this is the first epoch of its stage that the student has not finished."""
        if epoch > 0:
            return len(self.epochs) == epoch - 1
        return self.first is not None and len(self.first.losses) == -epoch - 1

    @property
    def under_way(self) -> bool:
        """Whether it is in the midst of an epoch."""
        return self.steps > 0 and self.is_next(self.epoch)

    def _progress(self) -> dict[str, Any]:
        """How far the epoch is."""
        self._earlier, self._timed_from = self.student_seconds(), self.steps
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "seconds": self._earlier,
            "names": self._names,
            "sums": self._sums.cpu(),
            "first_bad": self._first_bad.cpu(),
            "next": self._at.cpu(),
            "generator": self.method.generator.get_state(),
        }

    def _go_on(self, kept: dict[str, Any]) -> None:
        self.steps = self._timed_from = kept["steps"]
        self._earlier, self._names = kept["seconds"], list(kept["names"])
        self._sums, self._first_bad, self._at = (kept[name].to(self.device) for name in ("sums", "first_bad", "next"))
        self.method.generator.set_state(kept["generator"])

    def state(self) -> dict[str, Any]:
        """All that what follows depends on."""
        return {
            "fingerprint": self.trial.fingerprint,
            "epochs": [asdict(each) for each in self.epochs],
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "first": self.first.state() if self.first else None,
            "progress": self._progress() if self.under_way else self._kept,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises an exception of any kind if it is not this trial's."""
        if state["fingerprint"] != self.trial.fingerprint:
            raise ValueError("the state is another trial's")
        epochs = [EpochMetrics(**each) for each in state["epochs"]]
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.first:
            self.first.restore(state["first"])
        self.epochs, self._kept = epochs, state["progress"]

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict on the CPU."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
