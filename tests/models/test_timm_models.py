"""timm's models as ours: they compute what timm computes, keep timm's names, and errors are one sentence."""

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
from kdbench.models.timm_models import _stage_indices

CONVOLUTIONAL = ["resnet18", "mobilenetv3_small_100", "convnext_atto", "efficientnet_b0", "regnety_002"]
TOKENS = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"]
NO_LINEAR_CLASSIFIER = ["deit_tiny_distilled_patch16_224", "levit_128s"]  # two classifiers; one with a batch norm


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def build_both(name: str) -> tuple[Any, Any]:
    """Our model and timm's, with the same weights."""
    torch.manual_seed(0)
    model = models.build(f"timm/{name}", classes=7, size=64)
    options: dict[str, Any] = {"img_size": 64} if name in TOKENS else {}
    reference = timm.create_model(name, num_classes=7, **options)
    reference.load_state_dict(model.state_dict())  # strict: the names are timm's
    return model, reference


@pytest.mark.parametrize("name", CONVOLUTIONAL + TOKENS)
@torch.no_grad()
def test_outputs_equal_timms(name: str) -> None:
    model, reference = build_both(name)
    output: Output = model.eval()(images())
    torch.testing.assert_close(output.logits, reference.eval()(images()), rtol=1e-5, atol=1e-5)

    embeddings: list[Tensor] = []
    classifier = reference.get_classifier()
    if isinstance(classifier, nn.Linear):
        classifier.register_forward_pre_hook(lambda _module, inputs: embeddings.append(inputs[0]))
        reference(images())
        torch.testing.assert_close(output.embedding, embeddings[0], rtol=1e-5, atol=1e-5)

    shapes = models.features(f"timm/{name}", 7, 64)
    assert tuple(tuple(feature_map.shape[1:]) for feature_map in output.feature_maps) == shapes.feature_maps
    assert output.embedding.shape == (2, shapes.embedding_dim)
    assert output.pre_activations is None
    assert (output.last_map is None) == (shapes.last_map is None)
    if output.last_map is not None:
        torch.testing.assert_close(output.last_map.mean((2, 3)), output.embedding, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "has_one"), [("resnet18", True), ("regnety_002", True), ("convnext_atto", False)])
def test_whose_last_map_is_averaged(name: str, has_one: bool) -> None:
    assert (models.features(f"timm/{name}", 7, 64).last_map is not None) == has_one


@pytest.mark.parametrize("name", CONVOLUTIONAL + TOKENS)
@torch.no_grad()
def test_linear_classifiers(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(f"timm/{name}", 7, 64).eval()
    classifier, shapes = models.classifier_of(model), models.features(f"timm/{name}", 7, 64)
    assert shapes.classifier == (classifier is not None)
    assert (classifier is None) == (name in NO_LINEAR_CLASSIFIER)
    if classifier is not None:
        output: Output = model(images())
        torch.testing.assert_close(output.logits, nn.functional.linear(output.embedding, *classifier), rtol=0, atol=0)
    assert models.stage_batch_norms_of(model) is None
    assert not shapes.stage_batch_norms


@pytest.mark.parametrize("name", CONVOLUTIONAL + TOKENS)
@torch.no_grad()
def test_no_layer_modifies_a_feature_map_in_place(name: str) -> None:
    model, reference = build_both(name)
    for module in reference.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    reference.forward = model.forward.__func__.__get__(reference)
    torch.testing.assert_close(model.eval()(images()).feature_maps, reference.eval()(images()).feature_maps)


def test_stages_of_convolutional_models() -> None:
    """The stem comes first; each stage halves the size."""
    for name in ("resnet18", "mobilenetv3_small_100", "efficientnet_b0", "regnety_002"):
        assert [height for _, height, _ in models.features(f"timm/{name}", 7, 64).feature_maps] == [32, 16, 8, 4, 2], (
            name
        )


def test_the_first_stage_is_repeated_where_timm_gives_no_stem() -> None:
    torch.manual_seed(0)
    output: Output = models.build("timm/convnext_atto", 7, 64)(images())
    assert [feature_map.shape[2] for feature_map in output.feature_maps] == [16, 16, 8, 4, 2]
    assert output.feature_maps[0] is output.feature_maps[1]


def test_token_models_have_four_evenly_spaced_stages() -> None:
    assert _stage_indices([16] * 12) == [2, 5, 8, 11]
    assert _stage_indices([16] * 4) == [0, 1, 2, 3]
    assert _stage_indices([2, 4, 8, 16, 32]) == [0, 1, 2, 3, 4]
    # 64 pixels in patches of 16: 4x4 tokens, without the class token
    assert models.features("timm/vit_tiny_patch16_224", 7, 64).feature_maps == ((192, 4, 4),) * 5


def test_token_models_have_the_small_learning_rate() -> None:
    """See docs/protocol.md."""
    assert not any(models.info(f"timm/{name}").small_lr for name in CONVOLUTIONAL)
    assert all(models.info(f"timm/{name}").small_lr for name in [*TOKENS, "mixer_b16_224", "mobilevit_xxs"])


def test_gradients_reach_every_parameter() -> None:
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224"):
        model = models.build(f"timm/{name}", 7, 64)
        output: Output = model(images())
        output.logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), name


def test_names_are_canonical() -> None:
    """A tag names weights, so without `:pretrained` it is dropped."""
    assert models.info("timm/resnet18.a1_in1k").name == "timm/resnet18"
    assert models.info("timm/resnet18:pretrained").name == "timm/resnet18.a1_in1k:pretrained"
    assert models.info("timm/resnet18.tv_in1k:pretrained").name == "timm/resnet18.tv_in1k:pretrained"


def test_pretrained_weights_have_their_normalization() -> None:
    assert models.info("timm/vit_tiny_patch16_224").normalization is None
    assert models.info("timm/vit_tiny_patch16_224:pretrained").normalization == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet81", r"^unknown timm model 'resnet81': did you mean '.*'\? see timm.list_models\(\)$"),
        ("timm/", r"^unknown timm model '': see timm.list_models\(\)$"),
        ("timm/resnet18.nope", r"^unknown tag of timm/resnet18 'nope': .*it has .*a1_in1k"),
        ("timm/nfnet_f0:pretrained", r"^timm offers no weights for nfnet_f0: leave out :pretrained$"),
        ("resnet20:pretrained", r"^no weights come with resnet20: give a teacher's file with --teacher$"),
        ("nope:pretrained", r"^unknown model 'nope:pretrained'"),
    ],
)
def test_unknown_models_tags_and_weights(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.info(name)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 8), ("inception_v3", 64)])
def test_image_sizes_that_do_not_fit(name: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"^timm/{name} cannot take images of {size}x{size} pixels \(.+\)$"):
        models.features(f"timm/{name}", 7, size)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoint_files(tmp_path: Path, suffix: str) -> None:
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
    loaded = models.load_checkpoint(path, "timm/resnet18", 7, 64)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        models.load_checkpoint(path, "timm/resnet18", 7, 64)


def test_shapes_need_no_download() -> None:
    """A plan needs shapes; pretrained weights are fetched when training begins."""
    assert models.features("timm/resnet18:pretrained", 7, 64) == models.features("timm/resnet18", 7, 64)
