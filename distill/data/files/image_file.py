"""One image file: opened in RGB, and cropped to the square that a student gets.

Notable: Pillow and numpy alone, so that training and a classifier without torch (`distill.runtime`)
read the same pixels. What happens to rotated, transparent, 16-bit or damaged files is decided in
`contract.images`, which the service uses too.
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

DECODING: Final = 3  # part of cache keys; raise it when the same file gives other pixels


def open_image(source: ImagePath | BinaryIO, name: str | None = None) -> Image.Image:
    """The image in `source`, where it is or an open file: its first frame, upright, in 8-bit sRGB.

    `name` is what a message calls it, by default the path.

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
    except Exception as error:  # Pillow's decoders raise dozens of types for damaged files
        raise UnreadableImages([f"{name} ({failure_reason(error, head)})"]) from None


def _opened(source: ImagePath | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, Path):
        return open_regular(source)
    return nullcontext(
        io.BytesIO(source.read_bytes()) if isinstance(source, PackedImage) else source
    )


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre square of `image`, resized to side `size`: uint8 [3, size, size].

    The pixels are those of torchvision's Resize and CenterCrop, which open_clip and timm use.
    """
    if image.size != (size, size):
        shorter = min(image.size)
        width, height = (size * side // shorter for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
