"""The contract of a method: what a file in `methods/` imports, and all that it imports from kdbench."""

from kdbench.data.resident import Batch
from kdbench.distill.distiller import Distiller, Hyper, Pretraining, Shapes
from kdbench.distill.feature_maps import (
    ConvRegressor,
    attention,
    match_spatial_size,
    no_maps,
    no_positions,
    stages,
    sum_losses,
)
from kdbench.distill.losses import soft_kl
from kdbench.distill.memory_bank import NegativeSampler, initial_memory, mix, no_negatives, scores, smallest_pool
from kdbench.distill.registry import register
from kdbench.models.output import Output

__all__ = [
    "Batch",
    "ConvRegressor",
    "Distiller",
    "Hyper",
    "NegativeSampler",
    "Output",
    "Pretraining",
    "Shapes",
    "attention",
    "initial_memory",
    "match_spatial_size",
    "mix",
    "no_maps",
    "no_negatives",
    "no_positions",
    "register",
    "scores",
    "smallest_pool",
    "soft_kl",
    "stages",
    "sum_losses",
]
