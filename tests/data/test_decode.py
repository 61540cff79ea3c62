from __future__ import annotations

import hashlib
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.core.errors import UserError
from kdbench.data.decode import decode, decode_all, resize, square
from tests.data.build import noise, png

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    target = BytesIO()
    image.save(target, format=kind, **options)
    return target.getvalue()


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(1)[0]
    np.testing.assert_array_equal(decode("x", png(image), 8), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    grey = Image.fromarray(np.where(GREY > 99, 255, 0).astype(np.uint8))
    source = grey.convert("P") if mode == "PA" else grey.convert("RGB") if mode != "1" else grey
    np.testing.assert_allclose(square(source.convert(mode), 8), np.asarray(grey.convert("RGB")), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    found = decode("x", encode(Image.fromarray(deep), kind), 8)
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, axis=2))


def test_pixels_without_a_known_range_are_refused() -> None:
    for pixels in (GREY.astype(np.float32), GREY.astype(np.int32) * 70000):
        with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(.* have no known range\)"):
            decode("a.tif", encode(Image.fromarray(pixels), "TIFF"), 8)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_gives_no_warning() -> None:
    image = Image.fromarray(GREY).convert("P")
    assert decode("x", encode(image, "PNG", transparency=bytes([0, 128, 255])), 8).shape == (8, 8, 3)


@pytest.mark.parametrize(("ink", "paper"), [(30, 255), (220, 0)])
def test_what_is_drawn_on_a_transparent_background_stays_visible(ink: int, paper: int) -> None:
    """Dark drawings lie on white, light ones on black; half-transparent pixels lie between."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., :3] = ink
    rgba[2:6, 2:6, 3] = 255
    rgba[2, 2, 3] = 128
    found = decode("x", encode(Image.fromarray(rgba), "PNG"), 8)
    assert (found[0, 0] == paper).all()
    assert (found[4, 4] == ink).all()
    np.testing.assert_allclose(found[2, 2], (ink * 128 + paper * 127) / 255, atol=0.5)


def test_the_camera_s_orientation_is_applied() -> None:
    image = noise(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    encoded = encode(Image.fromarray(image), "PNG", exif=exif)
    np.testing.assert_array_equal(decode("x", encoded, 8), np.rot90(image, -1))


@pytest.mark.parametrize("size", [8, 4, 16])
def test_the_shorter_side_is_resized_and_the_longer_one_cropped_on_both_ends(size: int) -> None:
    wide = Image.fromarray(noise(1, 24)[0][:8])  # 24 pixels wide, 8 high
    scaled = wide.resize((3 * size, size), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled.crop((size, 0, 2 * size, size)))
    np.testing.assert_allclose(square(wide, size), expected, atol=1)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_allclose(square(tall, size), expected.transpose(1, 0, 2), atol=1)


def test_shrinking_averages() -> None:
    # A chessboard of single pixels: taking every n-th pixel would give black or white.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = square(Image.fromarray(board.astype(np.uint8)), 8)
    assert 110 < small.min() <= small.max() < 145


def test_resizing_arrays_is_resizing_images() -> None:
    images = noise(3)
    assert resize(images, 8) is images
    np.testing.assert_array_equal(resize(images, 5)[2], square(Image.fromarray(images[2]), 5))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [(b"", "no known image format"), (b"<html>", "no known image format"), (png(noise(1, 32)[0])[:900], "truncated")],
)
def test_an_unreadable_image_is_named(encoded: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.png: cannot be read as an image \(.*{reason}.*\); repair or remove it$"):
        decode("a.png", encoded, 8)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'a.png'}: cannot be read")):
        decode(str(tmp_path / "a.png"), tmp_path / "a.png", 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [20, 40])  # Pillow itself raises above twice the limit, and warns below
def test_the_limit_against_decompression_bombs_holds(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=rf"a\.png: has more than {limit} pixels"):
        decode("a.png", png(noise(1)[0]), 8)


def test_many_images_keep_their_order_and_errors_are_named_in_order() -> None:
    images = noise(300, 4)
    encoded: list[tuple[str, bytes | Path]] = [(f"row {row}", png(image)) for row, image in enumerate(images)]
    pixels, digests = decode_all(iter(encoded), 300, 4)
    np.testing.assert_array_equal(pixels, images)
    assert digests == [hashlib.sha256(content).digest() for _, content in encoded if isinstance(content, bytes)]
    encoded[7] = encoded[250] = ("bad", b"")
    encoded[7] = ("first", b"")
    with pytest.raises(UserError, match=r"^2 images cannot be used: first: .*; bad: .*$"):
        decode_all(encoded, 300, 4)
    with pytest.raises(UserError, match="only 3 of 5 images are there"):
        decode_all(encoded[:3], 5, 4)
