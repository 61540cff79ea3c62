"""Checkpoint files in all common forms, and damaged, malicious or unsuitable ones."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.core.errors import UserError
from kdbench.models import find_checkpoint, load_checkpoint

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return models.build("resnet8", classes=10, size=32).state_dict()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "teacher.pth"


def load(path: Path, arch: str = "resnet8", classes: int = 10, size: int = 32) -> State:
    return load_checkpoint(path, arch, classes, size)


def check(path: Path, state: State) -> None:
    loaded = load(path)
    assert list(loaded) == list(state)
    torch.testing.assert_close(loaded, dict(state), rtol=0, atol=0)
    models.build("resnet8", classes=10, size=32).load_state_dict(loaded)


def error_message(path: Path, *args: Any) -> str:
    """The error's one sentence, without the path that it begins with."""
    with pytest.raises(UserError) as caught:
        load(path, *args)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).strip()


def optimizer_state(state: State) -> dict[str, Any]:
    parameter = nn.Parameter(state["fc.weight"].clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


FORMS: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "with plain values": lambda s: {**s, "epoch": 240, "arch": "resnet8", "log": [1.5, None, (True, {"a": {1}})]},
    "with parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    **{
        f"under {key}": lambda s, key=key: {"epoch": 3, key: s}  # type: ignore[misc]
        for key in ("model", "state_dict", "model_state_dict", "model_state", "net", "state_dict_ema")
    },
    "with a namespace": lambda s: {
        "model": s,
        "opt": argparse.Namespace(lr=0.05, gamma=[150, 180], nested=argparse.Namespace()),
    },
    "with an optimizer": lambda s: {
        "epoch": 240,
        "model": s,
        "optimizer": optimizer_state(s),
        "best_acc": torch.tensor(72.5),
    },
    "with numpy values": lambda s: {
        "model": s,
        "best_acc": np.float64(72.5),
        "epoch": np.int64(240),
        "best": np.float32(1),
        "confusion": np.eye(3),
    },
    "data parallel": lambda s: {"model": with_prefix(s, "module.")},
    "data parallel, plain": lambda s: with_prefix(s, "module."),
    "compiled and data parallel": lambda s: with_prefix(s, "_orig_mod.module."),
    "with an average": lambda s: {"state_dict_ema": {k: v + 1 for k, v in s.items()}, "state_dict": s},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, zipped: bool, state: State, file: Path) -> None:
    torch.save(FORMS[form](state), file, _use_new_zipfile_serialization=zipped)
    check(file, state)


def test_numpy_values_of_numpy_1_and_2(state: State, file: Path) -> None:
    """numpy 2 renamed `numpy.core` to `numpy._core`; files with either name must load."""
    torch.save({"model": state, "best_acc": np.float64(72.5)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    names = [b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"]
    assert sum(name in content for name in names) == 1
    for name in names:
        file.write_bytes(re.sub(rb"cnumpy\._?core\.multiarray\n", name, content))
        check(file, state)


def test_half_precision_becomes_float(state: State, file: Path) -> None:
    torch.save({key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}, file)
    loaded = load(file)
    assert {key: tensor.dtype for key, tensor in loaded.items()} == {key: tensor.dtype for key, tensor in state.items()}
    torch.testing.assert_close(loaded["fc.weight"], state["fc.weight"], rtol=1e-3, atol=1e-6)  # half has 11 bits


def test_old_files_without_batch_counts(state: State, file: Path) -> None:
    torch.save({key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}, file)
    check(file, state)


def test_loaded_weights_give_the_same_outputs(state: State, file: Path) -> None:
    torch.save({"model": state}, file)
    images = torch.randn(2, 3, 32, 32)
    first, second = (models.build("resnet8", 10, 32).eval() for _ in range(2))
    first.load_state_dict(state)
    second.load_state_dict(load(file))
    with torch.no_grad():
        torch.testing.assert_close(second(images).logits, first(images).logits, rtol=0, atol=0)


class _Malicious:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_not_executed(form: str, state: State, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "created"
    content = {"model": state, "extra": _Malicious(target)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    message = error_message(file)
    assert f"({os.system.__module__}.system)" in message
    assert "was not opened" in message
    assert not target.exists()
    pickle.loads(pickle.dumps(content["extra"]))
    assert target.exists()  # the attack itself works


def test_code_inside_safe_objects_is_not_executed(state: State, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "created"
    torch.save({"model": state, "opt": argparse.Namespace(lr=_Malicious(target))}, file)
    assert "system" in error_message(file)
    assert not target.exists()


def test_pickled_models_are_refused(file: Path) -> None:
    torch.save({"model": models.build("resnet8", 10, 32)}, file)
    assert "(kdbench.models.resnet.ResNet)" in error_message(file)


def test_objects_of_other_types_are_refused(state: State, file: Path, tmp_path: Path) -> None:
    torch.save({"model": state, "folder": tmp_path}, file)
    assert re.search(r"\(pathlib\.\S*PosixPath\)|\(pathlib\.\S*WindowsPath\)", error_message(file))


def test_missing_file(file: Path) -> None:
    assert error_message(file) == "does not exist"
    assert error_message(file.parent) == "is not a file"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_file(kept: float, zipped: bool, state: State, file: Path) -> None:
    torch.save({"model": state}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content) if 0 < kept < 1 else kept)])
    assert error_message(file) == "is not a PyTorch checkpoint, or is damaged"


@pytest.mark.parametrize(
    "content", [b"hello\n", b"<html></html>", b"PK\x03\x04", bytes(range(256)), b"\x89PNG\r\n\x1a\n"]
)
def test_not_a_checkpoint(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert error_message(file) == "is not a PyTorch checkpoint, or is damaged"


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"model": {}}, [1, 2], None, {"a": {"b": torch.ones(1)}}, torch.ones(2)]
)
def test_no_state_dict(content: object, file: Path) -> None:
    torch.save(content, file)
    assert error_message(file).startswith(
        "holds no state dict, neither at the top level nor under any of model, state_dict,"
    )


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "resnet14",
            "does not hold a resnet14: layer1.1.conv1.weight is missing; it looks like resnet8 with 10 classes",
        ),
        (
            "resnet8x4",
            "does not hold a resnet8x4: conv1.weight has shape [16, 3, 3, 3] instead of [32, 3, 3, 3]; it looks",
        ),
        (
            "wrn_16_1",
            "does not hold a wrn_16_1: block1.layer.0.bn1.weight is missing; it looks like resnet8 with 10 classes",
        ),
    ],
)
def test_another_architecture(arch: str, message: str, state: State, file: Path) -> None:
    torch.save(state, file)
    assert error_message(file, arch).startswith(message)


def test_another_deeper_architecture(file: Path) -> None:
    torch.save({"model": models.build("resnet14", 100, 32).state_dict()}, file)
    assert error_message(file) == (
        "does not hold a resnet8: layer1.1.conv1.weight is unexpected; it looks like resnet14 with 100 classes"
    )


def test_an_unknown_architecture(file: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), file)
    assert error_message(file) == "does not hold a resnet8: conv1.weight is missing"


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_is_recognized(name: str, file: Path) -> None:
    with torch.device("meta"):
        layout = models.build(name, 3, 32).state_dict()
    torch.save({"model": {key: torch.zeros_like(tensor, device="cpu") for key, tensor in layout.items()}}, file)
    arch = "vgg8" if name != "vgg8" else "resnet8"
    assert error_message(file, arch, 10, 8).endswith(f"; it looks like {name} with 3 classes")


def test_the_architecture_is_guessed_for_small_images(state: State, file: Path) -> None:
    torch.save(state, file)
    assert error_message(file, "resnet14", 10, 4).endswith("it looks like resnet8 with 10 classes")


def test_another_number_of_classes(state: State, file: Path) -> None:
    torch.save(state, file)
    assert error_message(file, "resnet8", 100) == "holds a resnet8 with 10 classes, but the data has 100"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights(value: float, state: State, file: Path) -> None:
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, file)
    assert error_message(file) == "holds non-finite weights (layer2.0.conv1.weight)"


def test_an_invalid_request_fails_before_the_file_is_read(file: Path) -> None:
    with pytest.raises(UserError, match="unknown model"):
        load(file, "resnet9000")
    with pytest.raises(UserError, match="vgg8 needs images of at least 8x8"):
        load(file, "vgg8", 10, 4)


@pytest.mark.parametrize(
    ("paths", "arch", "expected"),
    [
        (["vgg8.pth"], "vgg8", "vgg8.pth"),
        (["vgg8.pt"], "vgg8", "vgg8.pt"),
        (["vgg8_best.pth"], "vgg8", "vgg8_best.pth"),
        (["vgg8_vanilla/ckpt_epoch_240.pth"], "vgg8", "vgg8_vanilla/ckpt_epoch_240.pth"),
        (["vgg8/vgg8_best.pt"], "vgg8", "vgg8/vgg8_best.pt"),
        (["vgg8_v/vgg8_best.pth", "vgg8_v/ckpt_epoch_240.pth"], "vgg8", "vgg8_v/ckpt_epoch_240.pth"),
        (["vgg8_best.pth", "vgg8.pth", "vgg8_v/ckpt_epoch_240.pth"], "vgg8", "vgg8.pth"),
        (["vgg8_empty/notes.txt", "vgg8_v/vgg8_best.pth"], "vgg8", "vgg8_v/vgg8_best.pth"),
        (
            ["resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32_vanilla/ckpt_epoch_240.pth"],
            "resnet32",
            "resnet32_vanilla/ckpt_epoch_240.pth",
        ),
        (
            ["wrn_40_10_vanilla/ckpt_epoch_240.pth", "wrn_40_1_vanilla/ckpt_epoch_240.pth"],
            "wrn_40_1",
            "wrn_40_1_vanilla/ckpt_epoch_240.pth",
        ),
        (
            ["resnet110_cifar100_lr_0.05_decay_0.0005_trial_0/resnet110_best.pth"],
            "resnet110",
            "resnet110_cifar100_lr_0.05_decay_0.0005_trial_0/resnet110_best.pth",
        ),
    ],
)
def test_find(paths: list[str], arch: str, expected: str, tmp_path: Path) -> None:
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert find_checkpoint(tmp_path, arch) == tmp_path / expected


@pytest.mark.parametrize("folder", ["resnet32x4_vanilla", "ResNet32", "my_resnet32", "resnet32x4.pth"])
def test_find_nothing(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "ckpt_epoch_240.pth").touch()
    with pytest.raises(UserError) as caught:
        find_checkpoint(tmp_path, "resnet32")
    assert str(caught.value) == (
        f"{tmp_path} holds no checkpoint of resnet32; looked for resnet32.pth, resnet32_best.pth, "
        "resnet32*/ckpt_epoch_240.pth and resnet32*/resnet32_best.pth, each also as .pt or .safetensors"
    )


def test_find_two(tmp_path: Path) -> None:
    files = [tmp_path / f"vgg13_{trial}" / "ckpt_epoch_240.pth" for trial in "ab"]
    for path in files:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(
        UserError, match=re.escape(f"several checkpoints of vgg13, {files[0]} and {files[1]}; name one")
    ):
        find_checkpoint(tmp_path, "vgg13")


def test_find_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere, where the checkpoint of vgg13 should be, is not a folder"):
        find_checkpoint(tmp_path / "nowhere", "vgg13")
