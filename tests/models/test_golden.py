"""Every architecture against the golden data: names and shapes of weights, cost, and outputs of the forward pass."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.models import FeatureShapes, Output, Profile

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHS: Mapping[str, Any] = json.loads((GOLDEN / "models.json").read_text())["archs"]
LAYOUTS: Mapping[str, Any] = json.loads(gzip.decompress((GOLDEN / "models_state_dicts.json.gz").read_bytes()))["archs"]
FORWARD: Mapping[str, Any] = json.loads((GOLDEN / "models_forward.json").read_text())
TRAINED: Mapping[str, Any] = FORWARD["train_mode"]["archs"]

# The golden file's `fair_tolerance`: of logits relative to their largest value, of features to their deviation.
LOGITS_EVAL, LOGITS_TRAIN = 2e-4, 5e-4
FEATURE_STATISTICS, FEATURE_VALUES = 1e-4, 5e-4

# The networks whose embedding is not the mean of the last stage's feature map, but of one more convolution's.
LAST_MAPS = {"MobileNetV2": (1280, 2, 2), "ShuffleV2": (1024, 4, 4)}


def filled(name: str) -> nn.Module:
    """A model whose tensors are set according to the golden file's `init_recipe`."""
    model = models.build(name, classes=100, size=32)
    state = {}
    for key, tensor in model.state_dict().items():
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        if key.endswith("num_batches_tracked"):
            values = np.zeros(())
        elif key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
            values = 0.5 + generator.random(tensor.shape)
        elif tensor.ndim >= 2:
            values = generator.standard_normal(tensor.shape) * (2 / prod(tensor.shape[1:])) ** 0.5
        else:
            values = 0.1 * generator.standard_normal(tensor.shape)
        state[key] = torch.from_numpy(np.asarray(values)).to(tensor.dtype)
    model.load_state_dict(state)
    return model


def golden_images() -> Tensor:
    generator = np.random.Generator(np.random.PCG64(1234))
    return torch.from_numpy(generator.standard_normal((2, 3, 32, 32)).astype(np.float32))


def golden_logits(key: str) -> Tensor:
    with np.load(GOLDEN / "models_forward.npz") as arrays:
        return torch.from_numpy(arrays[f"{key}.logits"])


def check_features(features: Sequence[Tensor], expected: Sequence[Mapping[str, Any]]) -> None:
    assert len(features) == len(expected)
    for index, (tensor, golden) in enumerate(zip(features, expected, strict=True)):
        assert list(tensor.shape) == golden["shape"]
        spread, values = golden["std"], tensor.double()
        assert values.mean().item() == pytest.approx(golden["mean"], abs=FEATURE_STATISTICS * spread), index
        assert values.std(correction=0).item() == pytest.approx(spread, abs=FEATURE_STATISTICS * spread), index
        assert values.flatten()[:8].tolist() == pytest.approx(golden["first8"], abs=FEATURE_VALUES * spread), index


def test_names() -> None:
    assert models.names() == list(ARCHS)


@pytest.mark.parametrize("name", ARCHS)
def test_state_dict(name: str) -> None:
    state = models.build(name, classes=100, size=32).state_dict()
    layout = [[key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()]
    assert layout == LAYOUTS[name]


@pytest.mark.parametrize("name", ARCHS)
def test_shapes_and_cost(name: str) -> None:
    golden = ARCHS[name]
    *feature_maps, (embedding_dim,) = (tuple(shape[1:]) for shape in golden["features"].values())
    assert models.features(name, 100, 32) == FeatureShapes(
        tuple(feature_maps),
        pre_activations=True,
        embedding_dim=embedding_dim,
        classifier=True,
        last_map=LAST_MAPS.get(name, feature_maps[-1]),
        stage_batch_norms=not name.startswith("Shuffle"),
    )
    assert models.profile(name, 100, 32) == Profile(golden["parameters"], golden["macs"])


@pytest.mark.parametrize("name", ARCHS)
def test_evaluation_forward(name: str) -> None:
    golden, logits = FORWARD["eval_mode"][name], golden_logits(name)
    with torch.no_grad():
        output: Output = filled(name).eval()(golden_images(), pre_activations=True)
    assert output.pre_activations is not None
    assert output.last_map is not None
    torch.testing.assert_close(output.last_map.mean((2, 3)), output.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=LOGITS_EVAL * logits.abs().max().item())
    check_features((*output.feature_maps, output.embedding), golden["features"])
    check_features((*output.pre_activations, output.embedding), golden["preact_features"])


@pytest.mark.parametrize("name", ARCHS)
def test_which_pre_activation_maps_equal_the_feature_maps(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, classes=4, size=32)
    output: Output = model(torch.randn(2, 3, 32, 32), pre_activations=True)
    assert output.pre_activations is not None
    equal = [torch.equal(*pair) for pair in zip(output.feature_maps, output.pre_activations, strict=True)]
    assert equal == ARCHS[name]["preact_equals_postact"][:-1]  # the last entry is the embedding


@pytest.mark.parametrize("pre_activations", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_training_forward_and_running_statistics(name: str, pre_activations: bool) -> None:
    golden, logits = TRAINED[name], golden_logits(f"train.{name}")
    model = filled(name).train()
    with torch.no_grad():
        output: Output = model(golden_images(), pre_activations=pre_activations)
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=LOGITS_TRAIN * logits.abs().max().item())
    check_features((*output.feature_maps, output.embedding), golden["features"])

    # One update of every batch norm, with pre-activation maps or without; 1e-5 because the summands are float32.
    state = model.state_dict()
    for statistic in ("running_mean", "running_var"):
        total = sum(tensor.double().sum().item() for key, tensor in state.items() if key.endswith(statistic))
        assert total == pytest.approx(golden["after_one_forward"][f"sum_{statistic}"], rel=1e-5), statistic
    assert all(count == 1 for key, count in state.items() if key.endswith("num_batches_tracked"))
