"""Captions of images: the lines of the JSONL file that the service exports for L_cap."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

# Suffixes of image files, for both the service and the worker.
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
    | {".avif", ".heic", ".heif"}
)


class ImageCaption(BaseModel):
    """One JSON line. An image may have several lines."""

    model_config = ConfigDict(frozen=True)

    image: Annotated[
        str, Field(min_length=1, description="Path relative to the data folder or train/")
    ]
    caption: Annotated[str, Field(min_length=1)]
