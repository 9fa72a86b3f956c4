"""The photos of a request: read from its body, and decoded in threads."""

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

Image.init()  # registers all of Pillow's formats; some of them start other programs
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
    """A photo as it came: the name of its file, and its bytes."""

    name: str
    content: bytes


async def read_uploads(request: Request, max_photos: int) -> list[Upload]:
    """The photos in the body: all files of a multipart form, or the body itself.

    Raises:
        HTTPException: there is none, there are too many, or the form is damaged.
    """
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        uploads = [Upload("photo", await request.body())]
    else:
        # One more than allowed, so that the answer is ours and says how many may come.
        async with request.form(max_files=max_photos + 1, max_fields=max_photos) as form:
            files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
            if len(files) > max_photos:
                raise HTTPException(413, f"A request may have {max_photos} photos: send fewer.")
            uploads = [
                Upload(file.filename or f"photo {place}", await file.read())
                for place, file in enumerate(files, start=1)
            ]
    if not any(upload.content for upload in uploads):
        raise HTTPException(
            422, "The request has no photo: send the files of a form, or one image as the body."
        )
    return uploads


def decode(upload: Upload, encoder: ImageEncoder, max_pixels: int) -> Pixels:
    """The photo as the encoder takes it: uint8 [3, size, size].

    Raises:
        UnreadableImages: it is cut off, of another format, or has more than `max_pixels`.
    """
    name = upload.name
    too_large = UnreadableImages([f"{name} (it has more than {max_pixels} pixels)"])
    try:
        with Image.open(io.BytesIO(upload.content), formats=FORMATS) as image:  # its header alone
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
