"""The contract of a method: what a file in `methods/` imports, and all that it imports from kdbench."""

from kdbench.data.batches import Batch
from kdbench.distill.distiller import Distiller, Hyper, Shapes
from kdbench.distill.losses import soft_kl
from kdbench.distill.registry import register
from kdbench.models.output import Output

__all__ = ["Batch", "Distiller", "Hyper", "Output", "Shapes", "register", "soft_kl"]
