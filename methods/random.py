"""KD from a random network: the teacher's architecture, never trained.

Paper:    none. A control: what KD gains from a teacher that knows nothing, and so as a mere regularizer.
Loss:     ce_weight · CE(labels) + random_weight · T² · KL(softmax(random/T) ‖ softmax(student/T)), both averaged over
          the batch.
Defaults: weights 0.1 and 0.9, T = 4, as `kd`.
Differs:  in nothing. The network is in evaluation mode with batch-norm statistics as initialized.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdbench.distill import Distiller, Hyper, Range, Requires, Step, register, soft_kl


@dataclass(frozen=True)
class RandomHyper(Hyper):
    ce_weight: Annotated[float, "weight of the cross-entropy with the labels", Range(0.01, 1.0, log=True)] = 0.1
    random_weight: Annotated[
        float, "weight of the KL divergence to the random network's softened class probabilities"
    ] = 0.9
    temperature: Annotated[float, "softens both sides of that divergence", Range(1.0, 16.0, log=True)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("temperature")


@register("random", RandomHyper, paper="-", kind="control", group="control")
class Random(Distiller[RandomHyper]):
    """Has no modules of its own."""

    @classmethod
    def requires(cls, hyper: RandomHyper) -> Requires:
        return Requires(extra_teachers=("random",))

    def losses(self, step: Step) -> dict[str, Tensor]:
        divergence = soft_kl(step.student.logits, step.extra["random"].logits, self.hyper.temperature)
        return {"random": self.hyper.random_weight * divergence}
