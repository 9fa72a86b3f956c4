"""Reads the photos of a request from its body, and decodes them in threads."""

import io
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from contract.images import failure_reason
from distill.data.files.image_file import open_image
from distill.errors import UnreadableImages
from distill.runtime.image_encoder import ImageEncoder, Pixels

Image.init()  # registers all of Pillow's formats; only safe ones are accepted (some run programs)
FORMATS: Final = tuple(
    kind
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
    if kind in Image.OPEN
)
BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photos": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                        }
                    },
                    "required": ["photos"],
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@dataclass(frozen=True)
class Upload:
    """An uploaded photo: its file name and its bytes."""

    name: str
    content: bytes


async def read_uploads(request: Request, max_photos: int) -> list[Upload]:
    """The photos in the body: all files of a multipart form, or the body itself.

    Raises:
        HTTPException: there are no photos or too many, or the form is malformed.
    """
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        uploads = [Upload("photo", await request.body())]
    else:
        try:
            uploads = await _read_form(request, max_photos)
        except HTTPException as error:
            if not error.detail.startswith("Too many files"):  # Starlette's, with a status of 400
                raise
            raise HTTPException(
                413, f"A request may have at most {max_photos} photos: send fewer."
            ) from None
    if not any(upload.content for upload in uploads):
        raise HTTPException(
            422, "The request has no photo: send a form with files, or one image as the body."
        )
    return uploads


async def _read_form(request: Request, max_photos: int) -> list[Upload]:
    """All files of a multipart form."""
    async with request.form(max_files=max_photos, max_fields=max_photos) as form:
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        return [
            Upload(file.filename or f"photo {number}", await file.read())
            for number, file in enumerate(files, start=1)
        ]


def decode(upload: Upload, encoder: ImageEncoder, max_pixels: int) -> Pixels:
    """The encoder's input for a photo: uint8 [3, size, size].

    Raises:
        UnreadableImages: it is truncated, of an unsupported format, or exceeds `max_pixels`.
    """
    name = upload.name
    if not upload.content:
        raise UnreadableImages([f"{name} (it is empty)"])
    too_large = UnreadableImages([f"{name} (it has more than {max_pixels} pixels)"])
    try:
        with Image.open(
            io.BytesIO(upload.content), formats=FORMATS
        ) as image:  # reads only the header
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception as error:  # Pillow's decoders raise dozens of types for damaged files
        reason = failure_reason(error, upload.content[:12])
        raise UnreadableImages([f"{name} ({reason})"]) from None
    if width * height > max_pixels:
        raise too_large
    try:
        return encoder.pixels(open_image(io.BytesIO(upload.content), name))
    except MemoryError:
        raise UnreadableImages([f"{name} (it needs more memory than there is)"]) from None
