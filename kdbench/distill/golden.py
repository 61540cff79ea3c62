"""How golden vectors of the authors' code map to a method: the value of `GOLDEN` in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Golden:
    """One name in the vectors' index. Names of arrays lack the leading `in.`; `g` is g.0, g.1, ... or g alone.

    `g[::-1]` is their reverse, `g+h` joins two arrays of groups [G, P, ...] and [G, N, ...] to rows [G·(P+N), ...]. The
    field `classifier` takes the parameters NAME.weight and NAME.bias; a teacher's is also in the `Context`. Vectors as
    `feature_maps` are maps of one position; an `embedding` of maps or tokens is their mean.
    """

    student: Mapping[str, str] = field(default_factory=dict)  # field of Output, or VIEW.field -> array
    teacher: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # extra teacher -> field of Output -> array
    context: Mapping[str, str] = field(default_factory=dict)
    """Field of Context -> array; `teacher_embeddings` are grouped by class, [C, N/C, D]."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Method of the distiller -> the array (or tuple of arrays) that it is made to return, such as its random draws."""
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Over weight 1 for the method's own terms and 0 for the cross-entropy; `$x` is the case's hyper-parameter x."""
    pretraining: bool = False  # whether the vectors are of the stage before the main one
    epoch: str | None = None  # the hyper-parameter that holds the epoch, or a list that begins with it; None: the last
    first_epoch: int = 1  # what the authors call the first epoch
    epochs: int = 240
    stem: bool = False  # whether the first feature map is the stem's; else they are the stages after it
    labels: str | None = None  # arrays of the batch
    indices: str | None = None
    negatives: str | None = None  # rows of the memory bank, the image's own first
    images: str | None = None  # the hyper-parameter that counts the training images
    state_prefix: str = ""  # where the method keeps state that it does not hold under the authors' name
    terms: Mapping[str, str] = field(default_factory=dict)
    """Our term -> the array that holds it, unweighted; divided by the setting named after `/`."""
    predictions: str | None = None  # the array that holds the student's predicted logits
    also_pretraining: str | None = None  # the array that holds the loss of the stage before, of the same case
