"""Models: architectures by name, their outputs, and checkpoints given as files."""

from kdbench.core.catalog import ModelInfo
from kdbench.models.architecture import Architecture
from kdbench.models.output import Classifier, Output
from kdbench.models.pretrained import find_checkpoint, load_checkpoint
from kdbench.models.registry import (
    FeatureShapes,
    Profile,
    build,
    classifier_of,
    features,
    fetch,
    info,
    names,
    profile,
    restore,
    stage_batch_norms_of,
)

__all__ = [
    "Architecture",
    "Classifier",
    "FeatureShapes",
    "ModelInfo",
    "Output",
    "Profile",
    "build",
    "classifier_of",
    "features",
    "fetch",
    "find_checkpoint",
    "info",
    "load_checkpoint",
    "names",
    "profile",
    "restore",
    "stage_batch_norms_of",
]
