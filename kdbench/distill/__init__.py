"""The contract of a method: what a file in `methods/` imports, and all that it imports from kdbench."""

from kdbench.core.catalog import Published, Range
from kdbench.data.dataset import Batch
from kdbench.data.views import View
from kdbench.distill.class_distances import class_distances
from kdbench.distill.distiller import Deployment, Distiller, Hyper, Pretraining
from kdbench.distill.feature_maps import (
    ConvRegressor,
    attention,
    cell_statistics,
    lacks_feature_maps,
    lacks_parts,
    lacks_positions,
    match_spatial_size,
    match_stages,
    sum_losses,
)
from kdbench.distill.golden import Golden
from kdbench.distill.losses import decoupled_kl, soft_cross_entropy, soft_kl, standardize, target_cross_entropy
from kdbench.distill.memory_bank import MemoryBank, lacks_negatives
from kdbench.distill.registry import register
from kdbench.distill.replaced_classifier import FrozenClassifier, Once
from kdbench.distill.step import Context, Requires, Shapes, Step, ViewStep
from kdbench.models.output import Output

__all__ = [
    "Batch",
    "Context",
    "ConvRegressor",
    "Deployment",
    "Distiller",
    "FrozenClassifier",
    "Golden",
    "Hyper",
    "MemoryBank",
    "Once",
    "Output",
    "Pretraining",
    "Published",
    "Range",
    "Requires",
    "Shapes",
    "Step",
    "View",
    "ViewStep",
    "attention",
    "cell_statistics",
    "class_distances",
    "decoupled_kl",
    "lacks_feature_maps",
    "lacks_negatives",
    "lacks_parts",
    "lacks_positions",
    "match_spatial_size",
    "match_stages",
    "register",
    "soft_cross_entropy",
    "soft_kl",
    "standardize",
    "sum_losses",
    "target_cross_entropy",
]
