"""timm's models through our call: what timm computes, under timm's names, and one sentence where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.models import Output
from kdbench.models.timm_models import _shown

CONVOLUTIONAL = ["resnet18", "mobilenetv3_small_100", "convnext_atto", "efficientnet_b0", "regnety_002"]
TOKENS = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"]
FIXED = {"vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"}


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def pair(name: str) -> tuple[Any, Any]:
    """Our model and timm's, with the same weights."""
    torch.manual_seed(0)
    ours = models.build(f"timm/{name}", classes=7, size=64)
    theirs = timm.create_model(name, num_classes=7, **({"img_size": 64} if name in FIXED else {}))  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())  # strict: the names are timm's
    return ours, theirs


@pytest.mark.parametrize("name", CONVOLUTIONAL + TOKENS)
@torch.no_grad()
def test_it_computes_what_timm_computes(name: str) -> None:
    ours, theirs = pair(name)
    output: Output = ours.eval()(images())
    torch.testing.assert_close(output.logits, theirs.eval()(images()), rtol=1e-5, atol=1e-5)

    seen: list[Tensor] = []
    classifier = theirs.get_classifier()
    if isinstance(classifier, nn.Linear):
        classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        theirs(images())
        torch.testing.assert_close(output.embedding, seen[0], rtol=1e-5, atol=1e-5)

    promised = models.features(f"timm/{name}", 7, 64)
    assert tuple(tuple(each.shape[1:]) for each in output.feature_maps) == promised.feature_maps
    assert output.embedding.shape == (2, promised.embedding)
    assert output.pre_activations is None


@pytest.mark.parametrize("name", CONVOLUTIONAL + TOKENS)
@torch.no_grad()
def test_maps_are_as_they_were_when_they_arose(name: str) -> None:
    """No later layer works in place on a map."""
    ours, theirs = pair(name)
    for module in theirs.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    theirs.forward = ours.forward.__func__.__get__(theirs)
    torch.testing.assert_close(ours.eval()(images()).feature_maps, theirs.eval()(images()).feature_maps)


def test_stages_of_convolutional_models() -> None:
    """Sizes fall by two from stage to stage; the stem comes first."""
    for name in ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "regnety_002"):
        assert [height for _, height, _ in models.features(f"timm/{name}", 7, 64).feature_maps] == [32, 16, 8, 4, 2], (
            name
        )


def test_where_timm_shows_no_stem_the_first_stage_stands_for_it() -> None:
    torch.manual_seed(0)
    output: Output = models.build("timm/convnext_atto", 7, 64)(images())
    assert [each.shape[2] for each in output.feature_maps] == [16, 16, 8, 4, 2]
    assert output.feature_maps[0] is output.feature_maps[1]


def test_four_blocks_of_a_token_model() -> None:
    assert _shown([16] * 12) == [2, 5, 8, 11]
    assert _shown([16] * 4) == [0, 1, 2, 3]
    assert _shown([2, 4, 8, 16, 32]) == [0, 1, 2, 3, 4]
    # 64 pixels in patches of 16: 4x4 tokens, the class token apart
    assert models.features("timm/vit_tiny_patch16_224", 7, 64).feature_maps == ((192, 4, 4),) * 5


def test_rates() -> None:
    """Token models train at the lower rate (docs/protocol.md)."""
    assert not any(models.info(f"timm/{name}").small_lr for name in CONVOLUTIONAL)
    assert all(models.info(f"timm/{name}").small_lr for name in [*TOKENS, "mixer_b16_224", "mobilevit_xxs"])


def test_gradients_reach_every_parameter() -> None:
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224"):
        model = models.build(f"timm/{name}", 7, 64)
        output: Output = model(images())
        output.logits.square().sum().backward()
        assert all(each.grad is not None for each in model.parameters()), name


def test_names_are_canonical() -> None:
    """A tag means weights: without `:pretrained` it says nothing."""
    assert models.info("timm/resnet18.a1_in1k").name == "timm/resnet18"
    assert models.info("timm/resnet18:pretrained").name == "timm/resnet18.a1_in1k:pretrained"
    assert models.info("timm/resnet18.tv_in1k:pretrained").name == "timm/resnet18.tv_in1k:pretrained"


def test_normalisation_comes_with_the_weights() -> None:
    assert models.info("timm/vit_tiny_patch16_224").normalization is None
    assert models.info("timm/vit_tiny_patch16_224:pretrained").normalization == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm/resnet81", r"^unknown timm model 'resnet81': did you mean '.*'\? see timm.list_models\(\)$"),
        ("timm/", r"^unknown timm model '': see timm.list_models\(\)$"),
        ("timm/resnet18.nope", r"^unknown tag of timm/resnet18 'nope': .*it has .*a1_in1k"),
        ("timm/nfnet_f0:pretrained", r"^timm offers no weights for nfnet_f0: leave out :pretrained$"),
        ("resnet20:pretrained", r"^no weights come with resnet20: give a teacher's file with --teacher$"),
        ("nope:pretrained", r"^unknown model 'nope:pretrained'"),
    ],
)
def test_one_sentence_for_what_is_not_there(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        models.info(name)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 8), ("inception_v3", 64)])
def test_one_sentence_for_images_that_do_not_fit(name: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"^timm/{name} cannot take images of {size}x{size} pixels \(.+\)$"):
        models.features(f"timm/{name}", 7, size)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_checkpoints(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = timm.create_model("resnet18", num_classes=7).state_dict()
    path = tmp_path / "timm" / f"resnet18{suffix}"
    path.parent.mkdir()
    if suffix == ".pth":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    assert models.find_checkpoint(tmp_path, "timm/resnet18") == path
    found = models.load_checkpoint(path, "timm/resnet18", 7, 64)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        models.load_checkpoint(path, "timm/resnet18", 7, 64)


def test_outlines_fetch_nothing() -> None:
    """A plan asks for shapes; the weights come when training begins."""
    assert models.features("timm/resnet18:pretrained", 7, 64) == models.features("timm/resnet18", 7, 64)
