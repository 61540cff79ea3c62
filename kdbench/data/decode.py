"""Encoded images of any mode and size -> square RGB pixels."""

from __future__ import annotations

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
"""Threads for reading and decoding; Pillow and hashlib work without the interpreter's lock."""

_CHUNK = 32  # images a task: handing over single small ones takes as long as decoding them


def square(image: Image.Image, size: int) -> Pixels:
    """RGB pixels [size, size, 3]: shorter side brought to `size`, then centre crop; transparency is dropped.

    Bicubic: Pillow widens the filter when it shrinks, so nothing aliases. An image of the right size is left as it is.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16-bit greyscale, which `convert` would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way warns
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def decode(where: str, encoded: bytes | Path, size: int, side: int | None = None) -> Pixels:
    """One encoded image as pixels [size, size, 3]; `side` is what it must have a side, if anything.

    Raises UserError, which begins with `where`.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if side is not None and image.size != (side, side):
                found = f"{image.width}x{image.height}"
                raise UserError(f"{where}: has {found} pixels and not {side}x{side}; was the set changed?")
            if limit is None or image.width * image.height <= limit:
                return square(image, size)
    except UserError:
        raise
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{where}: cannot be read as an image ({reason}); repair or remove it") from error
    raise UserError(f"{where}: has more than {limit:,} pixels, which may be an attack; shrink or remove it")


def decode_all(encoded: Iterable[tuple[str, bytes | Path]], count: int, size: int, side: int | None = None) -> Pixels:
    """`count` named encoded images, taken little by little, as pixels [count, size, size, 3]; see `decode`.

    Raises UserError.
    """
    pixels = _room(count, size)

    def fill(start: int, chunk: list[tuple[str, bytes | Path]]) -> None:
        for row, (where, data) in enumerate(chunk, start):
            pixels[row] = decode(where, data, size, side)

    source = iter(encoded)
    tasks: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for start in range(0, count, _CHUNK):
                chunk = list(islice(source, min(_CHUNK, count - start)))
                if len(chunk) < min(_CHUNK, count - start):
                    raise UserError(
                        f"only {start + len(chunk)} of {count} images are there: were files changed just now?"
                    )
                tasks.append(pool.submit(fill, start, chunk))
                if len(tasks) > 2 * WORKERS:  # bounds what is held in memory
                    tasks.popleft().result()
            while tasks:
                tasks.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pixels


def resize(images: Pixels, size: int) -> Pixels:
    """Decoded RGB images [N, H, W, 3] as [N, size, size, 3]."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = _room(len(images), size)
    with ThreadPoolExecutor(WORKERS) as pool:
        for row, image in enumerate(pool.map(lambda image: square(Image.fromarray(image), size), images)):
            pixels[row] = image
    return pixels


def _room(count: int, size: int) -> Pixels:
    try:
        return np.empty((count, size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        need = count * size * size * 3 / 1e9
        raise UserError(
            f"{count:,} images of {size}x{size} pixels need {need:.1f} GB of memory: lower --size"
        ) from error
