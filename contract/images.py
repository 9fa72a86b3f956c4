"""Reads image files for the service and the worker: opened safely, upright, in 8-bit sRGB.

Needs Pillow, so `contract/__init__.py` does not import it. docs/how-to/images.md has a table of how
each kind of file is handled.
"""

import io
import math
import os
import stat
import warnings
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Final, cast

from PIL import Image, ImageCms, UnidentifiedImageError

from contract.errors import error_line

try:  # the extra `heif`
    import pillow_heif
except ModuleNotFoundError:
    HEIF_SUPPORTED = False
else:
    pillow_heif.register_heif_opener()
    HEIF_SUPPORTED = True

# Pillow's warnings about damaged EXIF data or large images would print source lines to users.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

_ORIENTATION: Final = 0x0112  # the EXIF tag
_TRANSPOSED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_regular(path: Path) -> BufferedReader:
    """Open the file at `path` for reading. Never blocks on a named pipe or a device.

    Raises:
        OSError: it is missing, empty or not a regular file; `strerror` has the reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        reason = "it is a link to a missing file" if path.is_symlink() else "it does not exist"
        raise FileNotFoundError(0, reason) from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, f"it is a {_kind(status.st_mode)}, not a regular file")
    raise OSError(0, "it is empty")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    return "named pipe" if stat.S_ISFIFO(mode) else "device"


def failure_reason(error: Exception, head: bytes) -> str:
    """One line about why an image could not be read, from Pillow's `error`.

    `head` has the first 12 bytes of the file.
    """
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} megapixels"
    if isinstance(error, UnidentifiedImageError):
        if not HEIF_SUPPORTED and head[4:8] == b"ftyp" and not head[8:].startswith(b"avi"):
            return "HEIC needs pillow-heif: pip install 'enrich-distill[heif]'"
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return error_line(error)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The first frame of `image` in 8-bit sRGB, upright, with transparency on white."""
    image = _eight_bit(_upright(image))
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _in_srgb(image, profile)
    alpha = image.convert("RGBA")
    colours = _in_srgb(alpha.convert("RGB"), profile)
    white = Image.new("RGB", image.size, "white")
    return Image.composite(colours, white, alpha.getchannel("A"))


def _upright(image: Image.Image) -> Image.Image:
    """`image` rotated by its EXIF orientation. Pillow already rotates HEIF and TIFF files."""
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data raises many exception types; the pixels are fine
        return image
    if orientation not in _TRANSPOSED:
        return image
    rotated = image.transpose(_TRANSPOSED[orientation])
    rotated.info = image.info
    return rotated


def _eight_bit(image: Image.Image) -> Image.Image:
    """`image` with 8 bits per channel: 16-bit, 32-bit and float pixels are scaled."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = image if image.mode == "F" else image.convert("I").convert("F")
    least, most = cast(tuple[float, float], values.getextrema())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise OSError(0, "it has NaN or infinite pixels")
    low, high = 0.0, 65535.0
    if image.mode == "F" and least >= 0 and most <= 255:
        high = 1.0 if most <= 1 else 255.0
    elif most > 65535 or (image.mode == "F" and least < 0):
        low, high = min(0.0, least), most
    scale = 255 / max(high - low, 1e-30)
    grey = values.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")
    grey.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return grey


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` without transparency in sRGB, converted by its ICC `profile` if that fits."""
    if profile:
        if image.mode not in ("L", "RGB", "CMYK", "LAB"):
            image = image.convert("RGB")
        try:
            if (transform := _to_srgb(profile, image.mode)) is not None:
                return cast(Image.Image, ImageCms.applyTransform(image, transform))
        except (ImageCms.PyCMSError, ValueError, OSError):
            pass  # a damaged profile, or one for another colour mode
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion from `profile` to sRGB; None if the profile is sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB"):
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
