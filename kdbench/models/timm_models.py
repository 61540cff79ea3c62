"""Any classifier of timm as `timm/NAME`, or `timm/NAME:pretrained` to start from timm's weights.

Logits, feature maps and embedding come from timm's own feature interfaces. Parameters keep timm's names.
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
UNIFORM_STAGES = 4  # stages of a model whose blocks all give feature maps of one size


@cache
def architecture(name: str) -> Architecture:
    """The architecture behind `timm/NAME`, `timm/NAME.TAG:pretrained` or `timm/NAME:pretrained`.

    Its canonical name, in `info`, has the tag of the pretrained weights, and no tag without them.
    Raises UserError if timm does not have the model, the tag or the weights.
    """
    import timm

    timm_name = name.removeprefix(PREFIX).removesuffix(PRETRAINED)
    base, _, tag = timm_name.partition(".")
    if not timm.is_model(base):
        raise unknown_name("timm model", base, timm.list_models(), "see timm.list_models()")
    tags = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"tag of timm/{base}", tag, tags, f"it has {', '.join(tags) or 'none'}")
    config = timm.get_pretrained_cfg(timm_name)
    assert config is not None

    construct = partial(_construct, timm_name, config.fixed_input_size, False)
    small_lr = _is_token_model(base, config.fixed_input_size)
    if not name.endswith(PRETRAINED):
        return Architecture(ModelInfo(f"{PREFIX}{base}", "timm", small_lr, smallest=1), construct)
    if not config.has_weights:
        raise UserError(f"timm offers no weights for {timm_name}: leave out {PRETRAINED}")
    canonical = PREFIX + ".".join(filter(None, (base, config.tag))) + PRETRAINED
    (r, g, b), (r_std, g_std, b_std) = config.mean, config.std
    info = ModelInfo(canonical, "timm", small_lr, smallest=1, normalization=((r, g, b), (r_std, g_std, b_std)))
    return Architecture(info, construct, partial(_construct, timm_name, config.fixed_input_size, True))


def _construct(name: str, fixed_size: bool, pretrained: bool, classes: int, size: int) -> nn.Module:
    """timm's model with the call of our models. Raises UserError if its weights cannot be fetched."""
    import timm

    options: dict[str, Any] = {"num_classes": classes, **({"img_size": size} if fixed_size else {})}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # the libraries that download the weights raise errors of many types
        if not pretrained:
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the weights of {PREFIX}{name} could not be fetched ({first_line}): check the connection, "
            f"leave out {PRETRAINED}, or give a teacher's own file with --teacher"
        ) from error
    model.forward = MethodType(_forward, model)
    return model  # type: ignore[no-any-return]


def _forward(model: Any, images: Tensor, pre_activations: bool = False) -> Output:
    """Replacement for the model's `forward`; timm gives no pre-activation maps, so `pre_activations` is ignored."""
    del pre_activations
    reductions = [stage["reduction"] for stage in model.feature_info]
    indices = _stage_indices(reductions)
    features, feature_maps = model.forward_intermediates(images, indices=indices, output_fmt="NCHW")
    if reductions[0] >= 4:  # timm gives no stem; methods skip the first feature map, so the first stage is repeated
        feature_maps = [feature_maps[0], *feature_maps]
    embedding = model.forward_head(features, pre_logits=True)
    classifier = model.get_classifier()
    # timm computes the logits of models with two classifiers (distilled ones), or with one that is not linear.
    logits = classifier(embedding) if isinstance(classifier, nn.Linear) else model.forward_head(features)
    last_map = features if _is_averaged(model, features, embedding) else None
    return Output(logits, tuple(feature_maps), embedding, last_map=last_map)


def _is_averaged(model: Any, features: Tensor, embedding: Tensor) -> bool:
    """Whether the embedding is the mean over positions of the last features [B, D, H, W], and nothing more."""
    from timm.layers.classifier import ClassifierHead

    head = getattr(model, "head", None)
    pooling = getattr(head if type(head) is ClassifierHead else model, "global_pool", None)
    is_average = getattr(pooling, "pool_type", None) == "avg"
    return is_average and features.ndim == 4 and features.shape[1] == embedding.shape[1]


def _stage_indices(reductions: list[int]) -> list[int]:
    """Which of timm's feature maps are stages: all, or four evenly spaced ones if all of many have the same size."""
    count = len(reductions)
    if count <= UNIFORM_STAGES or len(set(reductions)) > 1:
        return list(range(count))
    return [count * stage // UNIFORM_STAGES - 1 for stage in range(1, UNIFORM_STAGES + 1)]


def _is_token_model(name: str, fixed_size: bool) -> bool:
    """Whether the model cuts its image into patches or has self-attention; such models use the small learning rate."""
    import timm
    from timm.layers.patch_embed import PatchEmbed

    options: dict[str, Any] = {"img_size": 224} if fixed_size else {}
    with torch.device("meta"):
        modules = list(timm.create_model(name, **options).modules())
    return any(
        isinstance(module, PatchEmbed) or hasattr(module, "qkv") or type(module).__name__.endswith("Attention")
        for module in modules
    )
