"""Models: the architectures by name, what they return, and the checkpoints that people own."""

from kdbench.models.architecture import Architecture
from kdbench.models.checkpoints import find_checkpoint, load_checkpoint
from kdbench.models.output import Output
from kdbench.models.zoo import FeatureShapes, Profile, build, features, fetch, info, names, profile, restore
from kdbench.spec import ModelInfo

__all__ = [
    "Architecture",
    "FeatureShapes",
    "ModelInfo",
    "Output",
    "Profile",
    "build",
    "features",
    "fetch",
    "find_checkpoint",
    "info",
    "load_checkpoint",
    "names",
    "profile",
    "restore",
]
