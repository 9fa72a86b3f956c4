"""Images for vision models: access checks, hashing and encoding.

Notable:
- An image is identified by the hash of its bytes, so that renaming a folder causes no requests.
  Hashing reads a file once; only an image without a caption is read again and decoded.
- Images are sent small: the longest side has at most `SIDE` pixels. A vision model does not see
  more of a photo without extra cost, and 100 images per second stay within a few MB.
- The header of a file gives its number of pixels. Images with too many are rejected before anything
  is decoded, and large images are decoded one at a time, so that memory does not grow with the
  number of images prepared at once.
- Only regular files are opened; formats are handled as in training (`contract.images`).
"""

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Final

from PIL import Image

from contract import IMAGE_SUFFIXES, is_hidden
from contract.images import failure_reason, open_regular, upright_rgb
from enrich_service.core.errors import InvalidInput, UnreadableImage

SIDE: Final = 512  # pixels of the longest side, as sent
QUALITY: Final = 85  # of the JPEG, out of 95
_MAX_PIXELS: Final = 64_000_000  # 256 MB decoded; the largest phone cameras have 50 million
_LARGE_PIXELS: Final = 4_000_000  # beyond, one image is decoded at a time
_MAX_BYTES: Final = 200 * 1024**2
# One thread for all: memory freed in one thread is not reused in another.
_LARGE_IMAGES: Final = ThreadPoolExecutor(1, thread_name_prefix="large-images")

Roots = Sequence[Path] | None  # folders from which images may be read; None: any folder


@dataclass(frozen=True)
class ImageFile:
    """One image of a class; `name` is CLASS/FILE. `problem`: why it cannot be read, if so."""

    name: str
    path: Path
    hash: str  # SHA-256 of its bytes; of its name if they cannot be read
    problem: str | None = None


def checked_folder(path: str, roots: Roots) -> Path:
    """The folder of class folders at `path`. Raises InvalidInput unless it may be read."""
    folder = Path(path).absolute()
    if roots is not None and not _is_inside(folder, roots):
        if not roots:
            raise InvalidInput(
                "images: the service may not read images: set ENRICH_IMAGE_ROOTS to the folders "
                "that contain them, or use `enrich run start --images`"
            )
        raise InvalidInput(
            f"images: {path} is not below {' or '.join(map(str, roots))}: put the images there, "
            "or add their folder to ENRICH_IMAGE_ROOTS"
        )
    if not folder.is_dir():
        raise InvalidInput(f"images: there is no folder {path}")
    return folder


def _is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Whether `path` is below a root once symbolic links are resolved."""
    return any(path.resolve().is_relative_to(root.resolve()) for root in roots)


def names_of(folder: Path, key: str) -> list[str]:
    """The images of the class `key`, as CLASS/FILE, sorted; empty if it has no folder."""
    names = []
    for subfolder, subfolders, files in os.walk(folder / key):
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        prefix = Path(subfolder).relative_to(folder).as_posix()
        names += [
            f"{prefix}/{file}"
            for file in files
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(file)
        ]
    return sorted(names)


def images_of(folder: Path, key: str, roots: Roots, *, page: int) -> Iterator[list[ImageFile]]:
    """The hashed images of the class `key`, `page` at a time."""
    names = names_of(folder, key)
    for start in range(0, len(names), page):
        yield [_hashed(folder, name, roots) for name in names[start : start + page]]


def _hashed(folder: Path, name: str, roots: Roots) -> ImageFile:
    path = folder / name
    problem = None
    if roots is not None and not _is_inside(path, roots):
        problem = "it is a link to a file outside the allowed folders"
    else:
        try:
            with _opened(path) as file:
                return ImageFile(name, path, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            problem = str(error.strerror)
    return ImageFile(name, path, hashlib.sha256(name.encode()).hexdigest(), problem)


def _opened(path: Path) -> BufferedReader:
    """Open the file. Raises OSError unless it is a regular file of at most _MAX_BYTES."""
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size <= _MAX_BYTES:
        return file
    file.close()
    raise OSError(0, f"it has more than {_MAX_BYTES // 1024**2} MiB")


def data_url(image: ImageFile) -> str:
    """The data URL that is sent: a JPEG of at most `SIDE` pixels a side, upright, in sRGB.

    Raises:
        UnreadableImage: it is missing, truncated, not an image, too large, or has changed.
    """
    if image.problem is not None:
        raise UnreadableImage(image.name, image.problem)
    data = b""
    try:
        with _opened(image.path) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != image.hash:
            raise UnreadableImage(image.name, "it was changed during the run")
        with Image.open(BytesIO(data)) as opened:
            small = _reduced(image.name, opened)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise dozens of types for damaged files
        raise UnreadableImage(image.name, failure_reason(error, data[:12])) from None
    jpeg = BytesIO()
    small.save(jpeg, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def _reduced(name: str, opened: Image.Image) -> Image.Image:
    """The image with at most `SIDE` pixels a side. With too many pixels it is not decoded."""
    pixels = opened.width * opened.height
    if pixels > _MAX_PIXELS:
        raise UnreadableImage(
            name, f"{opened.width} × {opened.height} pixels are too many, {_MAX_PIXELS} are allowed"
        )
    if pixels > _LARGE_PIXELS:
        return _LARGE_IMAGES.submit(_decoded, opened).result()
    return _decoded(opened)


def _decoded(opened: Image.Image) -> Image.Image:
    opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded no larger than needed
    if opened.mode in ("L", "RGB", "RGBA", "CMYK") and "transparency" not in opened.info:
        opened.thumbnail((SIDE, SIDE))  # before conversions, which need memory
    image = upright_rgb(opened)
    image.thumbnail((SIDE, SIDE))
    return image
