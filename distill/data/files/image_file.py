"""Opens an image file in RGB and crops it to the student's square input.

Uses only Pillow and numpy, so that training and a classifier without torch (`distill.runtime`) read
the same pixels. `contract.images`, which the service uses too, handles rotated, transparent, 16-bit
and damaged files.
"""

import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.images import failure_reason, open_regular, upright_rgb
from distill.data.files.packed_image import ImagePath, PackedImage
from distill.errors import UnreadableImages

DECODING: Final = 4  # part of cache keys; increase it when the same file gives different pixels
KEPT: Final = 8  # the least length of the middle of an elongated image, in shorter sides


def open_image(source: ImagePath | BinaryIO, name: str | None = None) -> Image.Image:
    """The first frame of the image in `source`, a path or an open file, upright, in 8-bit sRGB.

    `name` is its name in messages, by default the path.

    Raises:
        UnreadableImages: the file is missing, empty, truncated, not an image or not a regular file,
            or has more pixels than Pillow decodes (about 179 million), which may be a decompression
            bomb.
    """
    name = name or str(source)
    head = b""
    try:
        with _opened(source) as file:
            head = file.read(12)
            file.seek(0)
            with Image.open(file) as image:
                return upright_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many exception types for damaged files
        raise UnreadableImages([f"{name} ({failure_reason(error, head)})"]) from None


def _opened(source: ImagePath | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, Path):
        return open_regular(source)
    return nullcontext(
        io.BytesIO(source.read_bytes()) if isinstance(source, PackedImage) else source
    )


def crop_elongated(image: Image.Image) -> Image.Image:
    """`image`; if one side is at least 12 times the other, only its middle.

    Resizing all of a strip of 1 × 400,000 pixels to 224 pixels across, only to crop its centre,
    would take 80 GB. The centre differs by at most 2 of 255: an even multiple of the shorter side
    is cut off at each end, so that the rounding is the same, and the middle that is left is longer
    than the reach of the resize filter.
    """
    shorter, longer = sorted(image.size)
    end = (longer - KEPT * shorter) // (4 * shorter) * 2 * shorter
    if end <= 0:
        return image
    width, height = image.size
    left, top = (end, 0) if width > height else (0, end)
    return image.crop((left, top, width - left, height - top))


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre square of `image`, resized to `size` pixels: uint8 [3, size, size].

    Equals torchvision's Resize and CenterCrop, which open_clip and timm use; for elongated images
    to within 2 of 255 (see `crop_elongated`).
    """
    if image.size != (size, size):
        image = crop_elongated(image)
        shorter = min(image.size)
        width, height = (size * side // shorter for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
