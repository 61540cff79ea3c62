"""The two common protocols for training a linear classifier on a frozen backbone, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdbench.core.catalog import ModelInfo
from kdbench.core.data import DataInfo
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.linear_probe import LinearProbe
from kdbench.core.trial import Recipe, Trial

# The authors' transfer script: SGD with momentum 0.9 and weight decay 5e-4, 120 epochs of batches of 64, learning rate
# 0.05 (0.01 for MobileNets and ShuffleNets) divided by 10 after epochs 30, 60 and 90, random crops and flips.
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
    """How a probe is trained, and what of its backbone may change."""

    recipe: Recipe
    bn_train_mode: bool  # whether batch norms use batch statistics and update their running statistics
    summary: str


PROTOCOLS = {
    "authors": Protocol(
        _AUTHORS,
        True,
        "as in the paper: batch norms in training mode, weight decay 5e-4, random crops and flips, 120 epochs",
    ),
    "frozen": Protocol(
        replace(_AUTHORS, name="frozen", label="frozen", weight_decay=0.0),
        False,
        "backbone in evaluation mode, no weight decay, features of fixed views computed once, 120 epochs",
    ),
}


def protocol(name: str, *, epochs: int | None, size: int) -> Protocol:
    """The protocol `name` for images of `size` pixels; `epochs` replaces its number of epochs. Raises UserError."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS, f"the protocols are {' and '.join(PROTOCOLS)}")
    base = PROTOCOLS[name]
    recipe = replace(base.recipe, size=size, pad=max(1, size // 8))
    if epochs is not None and epochs != recipe.epochs:
        if epochs < 1:
            raise UserError(f"--epochs must be at least 1, got {epochs}")
        milestones = tuple(milestone * epochs / recipe.epochs for milestone in recipe.milestones)
        recipe = replace(recipe, epochs=epochs, milestones=milestones, label=f"{recipe.label}@{epochs}")
    return replace(base, recipe=recipe)


def transfer(
    source: Trial, weights: str, data: DataInfo, protocol: Protocol, model: ModelInfo, views: int, precision: str
) -> LinearProbe:
    """The probe of one trained network on one target data set; `weights` is the SHA-256 of the network's file.

    Raises UserError if the target has less than one batch of training images.
    """
    recipe = protocol.recipe
    if data.train < recipe.batch_size:
        raise UserError(
            f"{data.label} has {data.train} training images, less than one batch of {recipe.batch_size}: "
            "take more images or classes"
        )
    if protocol.bn_train_mode:
        views = 1
    elif views > 1:
        recipe = replace(recipe, label=f"{recipe.label},views={views}")
    lr = recipe.small_lr if model.small_lr else recipe.lr
    return LinearProbe(source, weights, data, recipe, protocol.bn_train_mode, views, lr, precision)
