"""Linear probes: classifiers for another data set on trained, frozen networks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from kdbench.core.data import DataInfo
from kdbench.core.recipe import Recipe
from kdbench.core.trial import PROTOCOL, Trial, readable_name


@dataclass(frozen=True)
class LinearProbe:
    """One linear classifier to train on the frozen backbone of a network that was trained on other images."""

    source: Trial  # the trial whose network is probed
    weights: str  # SHA-256 of the network's file
    data: DataInfo  # the target data set
    recipe: Recipe  # named after its protocol, see plan/probe_protocols.py
    bn_train_mode: bool
    """Whether batch norms use batch statistics and update their running ones, and images are augmented at random."""
    views: int  # fixed augmentations of each training image; used only without `bn_train_mode`
    lr: float
    precision: str  # of the backbone: `fp32` or `bf16`

    @property
    def seed(self) -> int:
        return self.source.seed

    @property
    def recipe_label(self) -> str:
        """The recipe as tables name it, with a precision other than fp32."""
        return self.recipe.label + ("" if self.precision == "fp32" else f"+{self.precision}")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that may change the result: equal for probes that must give equal results."""
        data = [self.data.content, self.data.mean, self.data.std, self.data.flip]
        key = {
            "protocol": PROTOCOL,
            "source": [self.source.fingerprint, self.weights],
            "data": data,
            "recipe": self.recipe.key,
            "how": [self.bn_train_mode, self.views, self.lr, self.precision],
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> str:
        """A readable file name that ends in the fingerprint."""
        parts = [self.data.label, self.recipe_label, self.source.data.label, *self.source.name_parts]
        return f"{readable_name(parts)}.{self.fingerprint}"
