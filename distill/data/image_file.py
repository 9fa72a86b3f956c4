"""One image file: opened in RGB, and cropped to the square that a student gets.

Notable: Pillow and numpy alone, so that training and a classifier without torch (`distill.runtime`)
read the same pixels.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distill.errors import UnreadableImages


def open_image(source: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """The image in `source`, a path or an open file, in RGB.

    `name` is what a message calls it, by default the path.

    Raises:
        UnreadableImages: the file is missing, truncated, not an image, or has more pixels than
            Pillow decodes (about 179 million), which may be a decompression bomb.
    """
    name = name or str(source)
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UnreadableImages([f"{name} (it no longer exists)"]) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UnreadableImages([f"{name} (it has more than {limit} megapixels)"]) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UnreadableImages([f"{name} ({_one_line(error)})"]) from None


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre square of `image`, resized to side `size`: uint8 [3, size, size]."""
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
