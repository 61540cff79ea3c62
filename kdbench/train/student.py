"""One student in training: its network, its distiller, its optimizer, and how far it is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.core.errors import plain
from kdbench.core.record import EpochMetrics
from kdbench.core.seeding import derive_seed
from kdbench.core.trial import Trial, Value
from kdbench.data.dataset import Batch
from kdbench.distill import registry
from kdbench.distill.distiller import Distiller
from kdbench.distill.objective import objective
from kdbench.distill.step import Context, Required, Shapes, Step, ViewStep
from kdbench.models import build, classifier_of, info
from kdbench.models.output import Output
from kdbench.train.backbone import backbone_modules
from kdbench.train.cuda_graph import Accelerator, Plain
from kdbench.train.device import compiled, on_device, seed_default_generator
from kdbench.train.evaluate import autocast
from kdbench.train.failures import Diverged, NonfiniteGradient, epoch_name
from kdbench.train.meters import EpochTimer, LossMeter
from kdbench.train.optim import build_optimizer, learning_rate, load_optimizer, set_learning_rate
from kdbench.train.recorded_step import RecordedStep, Work
from kdbench.train.shared_inputs import StepInputs
from kdbench.train.stages import EpochState, PretrainingStage


def to_float32(tensor: Tensor) -> Tensor:
    """In float32; the gradient of a feature map comes back in the layout that the convolutions before it work in."""
    converted = tensor.float()
    if converted.ndim == 4 and converted.requires_grad:
        converted.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))
    return converted


EpochReads = dict[tuple[str, tuple[float, ...]], None]
"""How a method reads the epoch: the attribute or function of `Step`, and what it is called with."""


@dataclass(frozen=True)
class ObservedStep(Step):
    """A step that notes how a method reads its epoch: a recording holds for as long as that gives the same values."""

    reads: EpochReads = field(default_factory=dict)

    def __getattribute__(self, name: str) -> Any:
        if name == "epoch":
            self.reads[name, ()] = None
        return super().__getattribute__(name)

    def epoch_of(self, total: int) -> float:
        return self._read("epoch_of", total)

    def warm_up(self, epochs: float) -> float:
        return self._read("warm_up", epochs)

    def cosine_decay(self, start: float) -> float:
        return self._read("cosine_decay", start)

    def _read(self, name: str, *arguments: float) -> float:
        self.reads[name, arguments] = None
        plain = Step(self.batch, self.student, self.teachers, super().__getattribute__("epoch"), self.epochs)
        value: float = getattr(plain, name)(*arguments)
        return value


class Student:
    """Nothing here depends on other students: every random stream is keyed by what it is for (see `derive_seed`)."""

    def __init__(
        self, trial: Trial, shapes: Shapes, device: torch.device, accelerator: Accelerator | None = None, **known: Any
    ) -> None:
        """`accelerator` is where its steps run, `known` are the fields of `Context` that the method requires."""
        self.trial, self.device = trial, device
        self.normalization = info(trial.arch).normalization
        self.epochs: list[EpochMetrics] = []  # finished ones
        self.metrics: dict[str, float] = {}  # after the last epoch, see `evaluate`
        self.current: EpochState | None = None
        self.timer = EpochTimer(device)
        self.recorded = RecordedStep(trial.method, accelerator or Plain(), self.timer)
        self.epoch_reads: EpochReads = {}
        self._saved_epoch: dict[str, Any] | None = None  # an epoch under way, from a checkpoint
        self._seed_key = (trial.stream or trial.method, trial.teacher, trial.arch, trial.seed)
        method, hyper = registry.distiller(trial.base), registry.hyper_of(trial.base, trial.settings)
        self.requires = method.requires(hyper)
        if reason := registry.missing(self.requires, shapes) or method.supports(hyper, shapes):
            raise ValueError(reason)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("weights", trial.arch, trial.seed))
            network = build(trial.arch, trial.data.classes, trial.data.size)
            torch.manual_seed(derive_seed("helpers", *self._seed_key))  # the modules of the method
            context = Context(**vars(shapes), generator=torch.Generator(device), **known)
            self.distiller: Distiller[Any] = method(hyper, context)
        self.network = on_device(network, device)
        self._compiled = compiled(self.network)  # for training steps; evaluations would compile it once more
        self._compiles = self._compiled is not self.network
        self._first_seconds: list[list[float]] = []  # of the first steps of each stage, if it is compiled in them
        self.distiller = self.distiller.to(device)
        parameters = [*self.network.parameters(), *(p for p in self.distiller.parameters() if p.requires_grad)]
        self.optimizer = build_optimizer(trial.recipe, parameters, trial.lr)
        self.pretraining = self._pretraining_stage()

    def _pretraining_stage(self) -> PretrainingStage | None:
        stage = self.distiller.pretraining()
        if stage is None:
            return None
        backbone = backbone_modules(self.network, self.trial.data.size, self.device) if stage.student else []
        parameters = [parameter for module in backbone for parameter in module.parameters(recurse=False)]
        parameters += [parameter for module in stage.modules for parameter in module.parameters()]
        optimizer = build_optimizer(self.trial.recipe, parameters, self.trial.lr if stage.lr is None else stage.lr)
        return PretrainingStage(backbone, optimizer, self.trial.recipe.pretraining_epochs)

    # One epoch: begin, steps, end.

    def is_next(self, epoch: int) -> bool:
        """Whether this is the first epoch of its stage that the student has not finished."""
        if epoch > 0:
            return len(self.epochs) == epoch - 1
        return self.pretraining is not None and len(self.pretraining.losses) == -epoch - 1

    def begin_epoch(self, epoch: int) -> None:
        """Prepare mode, learning rate, random streams and meters."""
        lr = learning_rate(self.trial.recipe, self.trial.lr, epoch)
        if self.current and self.current.epoch * epoch > 0:
            meter = self.current.meter
        else:  # another stage has other terms, and another optimizer
            meter, self.epoch_reads = LossMeter(self.device), {}
            self.recorded.restart()
            self._first_seconds.append([])
        dropout_seed = derive_seed("dropout", *self._seed_key, epoch)
        self.current = EpochState(epoch, lr, dropout_seed, meter, self.timer)
        self.distiller.generator.manual_seed(derive_seed("draws", *self._seed_key, epoch))
        if self._saved_epoch and self._saved_epoch["epoch"] == epoch:
            self.current.load_state(self._saved_epoch, self.distiller.generator)
        self._saved_epoch = None
        self.distiller.train()
        if epoch > 0:
            self.network.train()
            set_learning_rate(self.optimizer, lr)
        else:
            assert self.pretraining is not None
            self.network.eval()
            for module in self.pretraining.backbone:
                module.train()

    @property
    def steps(self) -> int:
        """Steps taken of the epoch under way."""
        return self.current.steps if self.current else 0

    def step(self, inputs: StepInputs) -> None:
        """One optimizer step; nothing is read back from the device. Its tensors are ready after `join`."""
        state = self._epoch_state()
        seed_default_generator(self.device, state.dropout_seed + state.steps)
        state.steps += 1
        work = Work(
            partial(self._train_step, inputs),
            discard=self._zero_grad,
            modules=(("network", self.network), ("self", self.distiller)),
            generator=self.distiller.generator,
            reads=inputs.tensors,
        )
        compiling = self._compiling
        self.recorded(inputs.slot, (inputs, self._epoch_values()), work)
        if compiling:
            self.timer.discard()  # no epoch costs what the first steps do

    @property
    def _compiling(self) -> bool:
        """Whether the next step is one of the stage's first, which compile the network or tell how long that took."""
        return self._compiles and len(self._first_seconds[-1]) < 2

    def join(self) -> None:
        """What is launched after this waits for the step."""
        self.recorded.join()

    def close(self) -> None:
        """Leave: wait for the last step, and give back what was recorded."""
        self.recorded.close()

    def _train_step(self, inputs: StepInputs) -> None:
        """A step's work on the device: forward, loss, backward, update."""
        started = time.perf_counter()
        state = self._epoch_state()
        step = self._forward_step(inputs)
        terms, optimizer = self._terms(step)
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            if state.epoch > 0:
                self.distiller.after_backward(step)
            state.meter.update(terms, self._clip(optimizer))
        optimizer.step()
        self._zero_grad()
        if self._compiling:
            self._first_seconds[-1].append(time.perf_counter() - started)

    def _zero_grad(self) -> None:
        self.network.zero_grad(set_to_none=True)
        self.distiller.zero_grad(set_to_none=True)

    def _forward_step(self, inputs: StepInputs) -> ObservedStep:
        """The network on the batch, then on each view that the method requires."""
        student = self._forward(self._compiled, inputs.batch)
        views = Required()
        for view in self.requires.views:
            shared = inputs.views[view]
            content = shared.view
            output = self._forward(self._compiled, content.batch)
            views[view.name] = ViewStep(content.batch, output, shared.teachers, content.partner, content.lam)
        epoch, extra = self._epoch_and_epochs(), Required(inputs.extra)
        return ObservedStep(inputs.batch, student, inputs.teachers, *epoch, views, extra, self.epoch_reads)

    def _epoch_and_epochs(self) -> tuple[int, int]:
        """Of the current stage, as a method sees them."""
        state, recipe = self._epoch_state(), self.trial.recipe
        return abs(state.epoch), recipe.epochs if state.epoch > 0 else recipe.pretraining_epochs

    def _epoch_values(self) -> tuple[float, ...]:
        """What the method would read of the epoch now."""
        if not self.epoch_reads:
            return ()
        step: Any = Step(None, None, (), *self._epoch_and_epochs())  # type: ignore[arg-type]
        return tuple(getattr(step, name)(*args) if args else step.epoch for name, args in self.epoch_reads)

    def _forward(self, network: nn.Module, batch: Batch) -> Output:
        with autocast(self.device, self.trial.precision):
            images = batch.images_for(self.normalization)
            output: Output = network(images, pre_activations=self.requires.pre_activations)
        output = (output if self.requires.last_map else replace(output, last_map=None)).convert(to_float32)
        return replace(output, classifier=classifier_of(self.network)) if self.requires.classifier else output

    def _terms(self, step: Step) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        """The weighted terms that the current stage minimizes, and its optimizer."""
        if self._epoch_state().epoch < 0:
            assert self.pretraining is not None
            return self.distiller.pretraining_losses(step), self.pretraining.optimizer
        return objective(self.distiller, step), self.optimizer

    def _clip(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of all gradients, which are scaled down to the recipe's largest norm, if it has one."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self.trial.recipe.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.trial.recipe.max_grad_norm, norm)
        return norm

    def nonfinite_terms(self, inputs: StepInputs) -> list[str]:
        """The terms whose own gradient would not be finite in the next step, which is not taken."""
        state = self._epoch_state()
        seed_default_generator(self.device, state.dropout_seed + state.steps)
        terms, optimizer = self._terms(self._forward_step(inputs))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = []
        for name, term in terms.items():
            if term.requires_grad:
                gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
                if not all(gradient.isfinite().all() for gradient in gradients if gradient is not None):
                    names.append(name)
        return names

    def end_epoch(self) -> dict[str, float]:
        """The epoch's mean of each term. Raises Diverged, naming the terms that were not finite first and the step."""
        state = self._epoch_state()
        if nonfinite := state.meter.first_nonfinite():
            step, names = nonfinite
            if not names:
                raise NonfiniteGradient(state.epoch, step, state.meter.names)
            where = f"{epoch_name(state.epoch)}, step {step + 1}"
            raise Diverged(f"the loss was not finite from {where} on (term: {', '.join(names)})")
        sums = [parameter.detach().float().abs().sum() for parameter in self.network.parameters()]
        if not torch.stack(sums).isfinite().all():
            raise Diverged(f"the weights were not finite after {epoch_name(state.epoch)}")
        means = state.meter.means(state.steps)
        if state.epoch < 0:
            assert self.pretraining is not None
            self.pretraining.losses.append(sum(means.values()))
        return means

    def seconds(self) -> float:
        """What its own part of the epoch took: its mean step times its steps; waits for the device."""
        state = self._epoch_state()
        return state.timer.seconds(state.steps)

    def _epoch_state(self) -> EpochState:
        assert self.current is not None, "no epoch has begun"
        return self.current

    # Evaluation and results.

    def eval(self) -> None:
        """Put network and distiller into evaluation mode."""
        self.network.eval()
        self.distiller.eval()

    def predict(self, batch: Batch) -> Tensor:
        """The logits [B, C] that are evaluated."""
        return self.distiller.predict(self._forward(self.network, batch))

    def extra_info(self) -> dict[str, Value]:
        """What the method says of itself. Raises TypeError if that cannot be recorded."""
        info = self.distiller.extra_info()
        for name, value in info.items():
            if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not isfinite(value)):
                raise TypeError(f"extra_info(): {name} must be a finite number, a word, true or false, not {value!r}")
        if self.pretraining:
            stage = {"pretraining_epochs": self.pretraining.epochs, "pretraining_loss": self.pretraining.losses[-1]}
            info = {**info, **stage}
        return {name: plain(value) if isinstance(value, str) else value for name, value in info.items()}

    def cost(self) -> dict[str, Value]:
        """What the method holds beside its student."""
        parameters = sum(parameter.numel() for parameter in self.distiller.parameters())
        held = sum(tensor.nbytes for tensor in (*self.distiller.parameters(), *self.distiller.buffers()))
        cost: dict[str, Value] = {"extra_parameters": parameters, "extra_mib": held / 2**20}
        if self._compiles:
            cost["compile_seconds"] = sum(first - sum(second) for first, *second in filter(None, self._first_seconds))
        return cost

    def deployed_parameters(self) -> int:
        """Parameters of what is deployed: the network, and what the method predicts with."""
        return sum(parameter.numel() for parameter in self.distiller.deploy(self.network).parameters())

    def weights(self) -> dict[str, Tensor]:
        """`network.*`, and `deploy.*` where the method predicts by more than the network; on the CPU."""
        state = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        deployed = self.distiller.deploy(self.network)
        if deployed is not self.network:
            state |= {name: value for name, value in deployed.state_dict().items() if name.startswith("deploy.")}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    # Checkpoints.

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to keep in a checkpoint."""
        return bool(self.epochs or self.steps or self.pretraining)

    def state(self) -> dict[str, Any]:
        """Everything needed to resume training."""
        generator = self.distiller.generator
        under_way = self.current is not None and self.steps > 0 and self.is_next(self.current.epoch)
        return {
            "fingerprint": self.trial.fingerprint,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "metrics": self.metrics,
            "network": self.network.state_dict(),
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pretraining": self.pretraining.state() if self.pretraining else None,
            "epoch_under_way": self.current.state(generator) if self.current and under_way else self._saved_epoch,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`. Raises an exception of any kind if it is not this trial's."""
        if state["fingerprint"] != self.trial.fingerprint:
            raise ValueError("the state is another trial's")
        epochs = [EpochMetrics(**epoch) for epoch in state["epochs"]]
        self.network.load_state_dict(state["network"])
        self.distiller.load_state_dict(state["distiller"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.pretraining:
            self.pretraining.load_state(state["pretraining"])
        self.epochs, self.metrics, self._saved_epoch = epochs, state["metrics"], state["epoch_under_way"]
