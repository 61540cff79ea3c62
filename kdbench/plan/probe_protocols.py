"""How a linear classifier is trained on a frozen trunk: the two protocols that are in use, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdbench.core.catalog import ModelInfo
from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.trial import Recipe, Trial

# The authors' transfer script: SGD with momentum 0.9, weight decay 5e-4, 120 epochs of batches of 64, at 0.05 (0.01 for
# the light networks), a tenth after epochs 30, 60 and 90; random crops and flips.
_AUTHORS = Recipe(
    name="authors",
    label="authors",
    epochs=120,
    batch_size=64,
    lr=0.05,
    small_lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(30.0, 60.0, 90.0),
    gamma=0.1,
    size=32,
    pad=4,
)


@dataclass(frozen=True)
class Protocol:
    """What of the network moves, and the schedule of its classifier."""

    recipe: Recipe
    bn_train_mode: bool
    summary: str


PROTOCOLS = {
    "authors": Protocol(
        _AUTHORS,
        True,
        "as the paper's authors: batch norms in training mode, weight decay 5e-4, random crops and flips, 120 epochs",
    ),
    "frozen": Protocol(
        replace(_AUTHORS, name="frozen", label="frozen", weight_decay=0.0),
        False,
        "nothing of the network moves: evaluation mode, no weight decay, fixed images whose features are computed once",
    ),
}


def protocol(name: str, *, epochs: int | None, size: int) -> Protocol:
    """A protocol for images of `size` pixels, in another number of epochs where asked for. Raises UserError."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS, f"the protocols are {' and '.join(PROTOCOLS)}")
    found = PROTOCOLS[name]
    recipe = replace(found.recipe, size=size, pad=max(1, size // 8))
    if epochs is not None and epochs != recipe.epochs:
        if epochs < 1:
            raise UserError(f"--epochs must be at least 1, got {epochs}")
        milestones = tuple(each * epochs / recipe.epochs for each in recipe.milestones)
        recipe = replace(recipe, epochs=epochs, milestones=milestones, label=f"{recipe.label}@{epochs}")
    return replace(found, recipe=recipe)


def transfer(
    source: Trial, weights: str, data: DataInfo, how: Protocol, model: ModelInfo, views: int, precision: str
) -> LinearProbe:
    """The transfer of one trained network to one target. Raises UserError if that has less than a batch of images."""
    recipe = how.recipe
    if data.train < recipe.batch_size:
        raise UserError(
            f"{data.label} has {data.train} training images, less than one batch of {recipe.batch_size}: "
            "take more images or classes"
        )
    if not how.bn_train_mode and views > 1:
        recipe = replace(recipe, label=f"{recipe.label},views={views}")
    rate = recipe.small_lr if model.small_lr else recipe.lr
    return LinearProbe(
        source, weights, data, recipe, how.bn_train_mode, 1 if how.bn_train_mode else views, rate, precision
    )
