"""Any classifier of timm as `timm/NAME`, or `timm/NAME:pretrained` to start from the weights that timm offers.

Logits, maps and embedding come from timm's own feature interfaces, and parameters keep timm's names.
"""

from __future__ import annotations

from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.core.catalog import ModelInfo
from kdbench.core.errors import UserError, unknown_name
from kdbench.core.trial import PRETRAINED
from kdbench.models.architecture import Architecture
from kdbench.models.output import Output

PREFIX = "timm/"
BLOCKS_SHOWN = 4  # of a model whose maps are all of one size


@cache
def architecture(name: str) -> Architecture:
    """The architecture behind `timm/NAME`, `timm/NAME.TAG:pretrained` or `timm/NAME:pretrained`.

    Its canonical name, in `info`, has the tag that says which weights are meant, or none where none are used.
    Raises UserError for what timm does not have, and for weights that it does not offer.
    """
    import timm

    wanted = name.removeprefix(PREFIX).removesuffix(PRETRAINED)
    base, _, tag = wanted.partition(".")
    if not timm.is_model(base):
        raise unknown_name("timm model", base, timm.list_models(), "see timm.list_models()")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"tag of timm/{base}", tag, tags, f"it has {', '.join(tags) or 'none'}")
    config = timm.get_pretrained_cfg(wanted)
    assert config is not None

    construct = partial(_construct, wanted, config.fixed_input_size, False)
    light = _sees_tokens(base, config.fixed_input_size)
    if not name.endswith(PRETRAINED):
        return Architecture(ModelInfo(f"{PREFIX}{base}", "timm", light, smallest=1), construct)
    if not config.has_weights:
        raise UserError(f"timm offers no weights for {wanted}: leave out {PRETRAINED}")
    canonical = PREFIX + ".".join(filter(None, (base, config.tag))) + PRETRAINED
    (r, g, b), (dr, dg, db) = config.mean, config.std
    info = ModelInfo(canonical, "timm", light, smallest=1, normalization=((r, g, b), (dr, dg, db)))
    return Architecture(info, construct, partial(_construct, wanted, config.fixed_input_size, True))


def _construct(name: str, sized: bool, pretrained: bool, classes: int, size: int) -> nn.Module:
    """timm's model under our call. Raises UserError if its weights cannot be had."""
    import timm

    options: dict[str, Any] = {"num_classes": classes, **({"img_size": size} if sized else {})}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # each library on the way to the weights has its own
        if not pretrained:
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of {PREFIX}{name} could not be fetched ({first}): check the connection, "
            f"leave out {PRETRAINED}, or give a teacher's own file with --teacher"
        ) from error
    model.forward = MethodType(_forward, model)
    return model  # type: ignore[no-any-return]


def _forward(model: Any, images: Tensor, pre_activations: bool = False) -> Output:
    """Replaces the model's `forward`; timm shows no map before its activation, so `pre_activations` changes nothing."""
    del pre_activations
    reductions = [stage["reduction"] for stage in model.feature_info]
    features, maps = model.forward_intermediates(images, indices=_shown(reductions), output_fmt="NCHW")
    # Methods leave the stem apart; where timm shows none, the first stage stands in its place too.
    maps = maps if reductions[0] < 4 else [maps[0], *maps]
    embedding = model.forward_head(features, pre_logits=True)
    classifier = model.get_classifier()
    # Two classifiers (distilled models), or one that is a convolution, are left to timm.
    logits = classifier(embedding) if isinstance(classifier, nn.Linear) else model.forward_head(features)
    return Output(logits, tuple(maps), embedding)


def _shown(reductions: list[int]) -> list[int]:
    """Which of timm's maps are stages: all, or four evenly spaced ones where every block gives one of the same size."""
    count = len(reductions)
    if count <= BLOCKS_SHOWN or len(set(reductions)) > 1:
        return list(range(count))
    return [count * number // BLOCKS_SHOWN - 1 for number in range(1, BLOCKS_SHOWN + 1)]


def _sees_tokens(name: str, sized: bool) -> bool:
    """Whether the model cuts its image into patches or has self-attention: such models train at the lower rate."""
    import timm
    from timm.layers.patch_embed import PatchEmbed

    options: dict[str, Any] = {"img_size": 224} if sized else {}
    with torch.device("meta"):
        modules = list(timm.create_model(name, **options).modules())
    return any(
        isinstance(each, PatchEmbed) or hasattr(each, "qkv") or type(each).__name__.endswith("Attention")
        for each in modules
    )
