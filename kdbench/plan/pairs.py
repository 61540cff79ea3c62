"""Named sets of teacher/student pairs."""

from __future__ import annotations

import re

from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import PRETRAINED, Pair


def _pairs(*names: str) -> tuple[Pair, ...]:
    return tuple(Pair((name.split(":")[0],), name.split(":")[1]) for name in names)


# The 13 pairs of the CRD and ICD papers' CIFAR-100 tables, in their order.
_PAPER = {
    "same": _pairs(
        "wrn_40_2:wrn_16_2",
        "wrn_40_2:wrn_40_1",
        "resnet56:resnet20",
        "resnet110:resnet20",
        "resnet110:resnet32",
        "resnet32x4:resnet8x4",
        "vgg13:vgg8",
    ),
    "cross": _pairs(
        "vgg13:MobileNetV2",
        "ResNet50:MobileNetV2",
        "ResNet50:vgg8",
        "resnet32x4:ShuffleV1",
        "resnet32x4:ShuffleV2",
        "wrn_40_2:ShuffleV1",
    ),
}

# Small enough that the whole study takes minutes on a CPU.
_DIGITS = {
    "same": _pairs("resnet20:resnet8", "wrn_16_2:wrn_16_1"),
    "cross": _pairs("wrn_16_2:resnet8"),
}


def sets(source: str) -> dict[str, tuple[Pair, ...]]:
    """The named sets for a data source: same, cross, all."""
    chosen = _DIGITS if source == "digits" else _PAPER
    return {**chosen, "all": chosen["same"] + chosen["cross"]}


def parse(text: str, source: str) -> tuple[Pair, ...]:
    """`all`, `same`, `cross`, or pairs, comma-separated; architectures are checked later, by the catalog.

    pair  := model { "+" model } ":" model
    model := NAME [ ":pretrained" ]
    """
    named = sets(source)
    chosen: list[Pair] = []
    for word in (part.strip() for part in text.split(",")):
        models = _models(word)
        if word in named:
            chosen.extend(named[word])
        elif len(models) == 1:
            raise unknown_name("pair", word, named, "write teacher:student, or see `python bench.py list pairs`")
        elif len(models) > 2 or not all(models):
            raise UserError(f"the pair {word!r} is not of the form teacher:student")
        else:
            teachers = models[0].split("+")
            if not all(teachers):
                raise UserError(f"the pair {word!r} names an empty teacher: write teacher+teacher:student")
            if len(set(teachers)) < len(teachers):
                raise UserError(f"the pair {word!r} names a teacher twice")
            chosen.append(Pair(tuple(sorted(teachers)), models[1]))
    return tuple(dict.fromkeys(chosen))


def _models(word: str) -> list[str]:
    """What stands between the colons; `:pretrained` belongs to the name before it."""
    return re.split(rf":(?!{PRETRAINED[1:]}(?:[:+]|$))", word)
