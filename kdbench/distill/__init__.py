"""The contract of a method: what a file in `methods/` imports, and all that it imports from kdbench."""

from kdbench.data.batches import Batch
from kdbench.distill.distiller import Distiller, Hyper, Pretraining, Shapes
from kdbench.distill.features import ConvRegressor, attention, no_maps, no_positions, pool_alike, stages, sum_of
from kdbench.distill.losses import soft_kl
from kdbench.distill.memory import OtherClasses, initial_memory, mix, no_negatives, scores, smallest_pool
from kdbench.distill.registry import register
from kdbench.models.output import Output

__all__ = [
    "Batch",
    "ConvRegressor",
    "Distiller",
    "Hyper",
    "OtherClasses",
    "Output",
    "Pretraining",
    "Shapes",
    "attention",
    "initial_memory",
    "mix",
    "no_maps",
    "no_negatives",
    "no_positions",
    "pool_alike",
    "register",
    "scores",
    "smallest_pool",
    "soft_kl",
    "stages",
    "sum_of",
]
