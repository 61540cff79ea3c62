"""Models: the architectures by name, what they return, and the checkpoints that people own."""

from kdbench.models.checkpoints import find_checkpoint, load_checkpoint
from kdbench.models.output import Output
from kdbench.models.zoo import FeatureShapes, Profile, build, features, info, names, profile

__all__ = [
    "FeatureShapes",
    "Output",
    "Profile",
    "build",
    "features",
    "find_checkpoint",
    "info",
    "load_checkpoint",
    "names",
    "profile",
]
