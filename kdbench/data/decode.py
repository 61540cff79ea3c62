"""From encoded images of any mode and size to square RGB pixels."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdbench.core.errors import UserError

Pixels = NDArray[np.uint8]

WORKERS = min(16, os.cpu_count() or 1)
"""Threads for reading and decoding; Pillow and hashlib release the GIL."""

DECODER = 2
"""Version of the decoding. Increase it whenever this file or a source turns the same files into other images."""

_NAMED = 10  # images that an error names
_CHUNK = 32  # images per task: for small images, handing over single ones costs as much as decoding them


def square(image: Image.Image, size: int) -> Pixels:
    """RGB pixels [size, size, 3]: the shorter side is resized to `size`, the longer one center-cropped.

    Resizing is bicubic with antialiasing; an image of the right size keeps its pixels. Transparent images are
    composited, see `flatten`. Raises ValueError for pixel types without a known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16-bit grayscale, which `convert` would clip at 255
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = flatten(image)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def flatten(image: Image.Image) -> Image.Image:
    """An RGB image over black if its visible pixels are light (mean luminance above one half), otherwise over white.

    What was drawn on a transparent background stays visible so, whether it is light or dark.
    """
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    color, alpha = rgba[..., :3], rgba[..., 3:] / 255
    luminance = color @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow converts to gray
    weight = alpha.sum()
    light = weight > 0 and (luminance * alpha[..., 0]).sum() / weight > 127.5
    composited = color * alpha + (0.0 if light else 255.0) * (1 - alpha)
    return Image.fromarray(np.rint(composited).astype(np.uint8))


def decode(where: str, encoded: bytes | Path, size: int, side: int | None = None) -> Pixels:
    """Decode one image to pixels [size, size, 3].

    `side`, if given, is the number of pixels that each side of the encoded image must have. Raises UserError, whose
    message begins with `where`.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if side is not None and image.size != (side, side):
                actual = f"{image.width}x{image.height}"
                raise UserError(f"{where}: has {actual} pixels and not {side}x{side}; was the set changed?")
            if limit is None or image.width * image.height <= limit:
                return square(image, size)
    except UserError:
        raise
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow's readers may raise anything for a damaged file
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where}: cannot be read as an image ({reason}); repair or remove it") from error
    raise UserError(f"{where}: has more than {limit:,} pixels, which may be an attack; shrink or remove it")


def decode_all(
    encoded: Iterable[tuple[str, bytes | Path]], count: int, size: int, side: int | None = None
) -> tuple[Pixels, list[bytes]]:
    """Decode `count` images, given as (where, image), in parallel to pixels [count, size, size, 3]; see `decode`.

    Also returns the SHA-256 of the encoded bytes of each. The iterable is read bit by bit, so that only a few encoded
    images are in memory. Raises UserError, which names the first ten of the images that cannot be decoded.
    """
    unreadable: list[tuple[int, UserError]] = []
    pixels, digests = _allocate(count, size), [b""] * count

    def decode_chunk(start: int, chunk: list[tuple[str, bytes | Path]]) -> None:
        for row, (where, image) in enumerate(chunk, start):
            try:
                content = image if isinstance(image, bytes) else _read(where, image)
                digests[row] = hashlib.sha256(content).digest()
                pixels[row] = decode(where, content, size, side)
            except UserError as error:
                unreadable.append((row, error))

    images = iter(encoded)
    tasks: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for start in range(0, count, _CHUNK):
                expected = min(_CHUNK, count - start)
                chunk = list(islice(images, expected))
                if len(chunk) < expected:
                    raise UserError(
                        f"only {start + len(chunk)} of {count} images are there: were files changed just now?"
                    )
                tasks.append(pool.submit(decode_chunk, start, chunk))
                if len(tasks) > 2 * WORKERS:  # bounds the memory for encoded images
                    tasks.popleft().result()
            while tasks:
                tasks.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if unreadable:
        raise _all_in_one([error for _, error in sorted(unreadable, key=lambda item: item[0])])
    return pixels, digests


def _read(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error


def _all_in_one(errors: list[UserError]) -> UserError:
    if len(errors) == 1:
        return errors[0]
    shown = "; ".join(map(str, errors[:_NAMED]))
    more = f"; and {len(errors) - _NAMED:,} more" if len(errors) > _NAMED else ""
    return UserError(f"{len(errors):,} images cannot be used: {shown}{more}")


def resize(images: Pixels, size: int) -> Pixels:
    """Decoded RGB images [N, H, W, 3] as [N, size, size, 3]; the same array if they have that size."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = _allocate(len(images), size)
    with ThreadPoolExecutor(WORKERS) as pool:
        for row, image in enumerate(pool.map(lambda image: square(Image.fromarray(image), size), images)):
            pixels[row] = image
    return pixels


def _allocate(count: int, size: int) -> Pixels:
    try:
        return np.empty((count, size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        gigabytes = count * size * size * 3 / 1e9
        raise UserError(
            f"{count:,} images of {size}x{size} pixels need {gigabytes:.1f} GB of memory: lower --size"
        ) from error
