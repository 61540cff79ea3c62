"""The methods and models that are installed, as the plan sees them."""

from __future__ import annotations

from collections.abc import Mapping

from kdbench import models
from kdbench.core.catalog import Catalog
from kdbench.core.data import DataInfo
from kdbench.core.trial import Pair, Value
from kdbench.data.dataset import Dataset
from kdbench.distill import Shapes, registry


def build_catalog(images: Dataset | None = None) -> Catalog:
    """The methods and models as the plan sees them; without images, no method has an incompatibility."""
    infos = registry.infos()

    def incompatibility(name: str, settings: Mapping[str, Value], pair: Pair, data: DataInfo) -> str | None:
        assert images is not None
        student, *teachers = (models.features(arch, data.classes, data.size) for arch in (pair.student, *pair.teachers))
        family = models.info(pair.student).family
        shapes = Shapes(student, tuple(teachers), data.classes, images.labels, family)
        return registry.incompatibility(name, settings, shapes)

    return Catalog(infos, models.info, incompatibility, registry.discover())
