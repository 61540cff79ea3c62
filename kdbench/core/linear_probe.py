"""Linear probes: classifiers for other images on trained, frozen networks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from kdbench.core.data import DataInfo
from kdbench.core.trial import PROTOCOL, Recipe, Trial, readable_name


@dataclass(frozen=True)
class LinearProbe:
    """One linear classifier to train on the frozen trunk of a network that was trained on other images."""

    source: Trial  # whose network it is
    weights: str  # SHA-256 of that network's file
    data: DataInfo  # the target
    recipe: Recipe  # named after its protocol, see plan/protocols.py
    bn_train_mode: (
        bool  # batch norms work with batch normalization, and their running ones move; images are augmented at random
    )
    views: int  # fixed views of each training image, where nothing moves
    lr: float
    precision: str  # of the trunk

    @property
    def seed(self) -> int:
        return self.source.seed

    @property
    def recipe_label(self) -> str:
        return self.recipe.label + ("" if self.precision == "fp32" else f"+{self.precision}")

    @cached_property
    def fingerprint(self) -> str:
        """Equal for transfers that must give equal results."""
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
        """A file name that a person can read and that ends in the fingerprint."""
        parts = [self.data.label, self.recipe_label, self.source.data.label, *self.source.name_parts]
        return f"{readable_name(parts)}.{self.fingerprint}"
