"""No teacher: cross-entropy with the labels alone.

Paper:    none; the baseline of every table. Teachers are trained like this.
Loss:     CE(labels, student logits).
Defaults: none.
Differs:  in nothing.
"""

from dataclasses import dataclass, fields

from kdbench.distill import Distiller, Hyper, Requires, register


@dataclass(frozen=True)
class VanillaHyper(Hyper):
    def __post_init__(self) -> None:
        if any(getattr(self, item.name) != item.default for item in fields(self)):
            raise ValueError("vanilla has no settings: its network is the same in every table")


@register("vanilla", VanillaHyper, paper="-", kind="control", group="control")
class Vanilla(Distiller[VanillaHyper]):
    """Adds no term to the trainer's cross-entropy."""

    @classmethod
    def requires(cls, hyper: VanillaHyper) -> Requires:
        return Requires(min_teachers=0, max_teachers=None)
