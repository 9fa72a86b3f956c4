"""Captions of images: the lines of the JSONL file that the service exports for L_cap."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

# Suffixes of image files, for both the service and the worker.
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
    | {".avif", ".heic", ".heif"}
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not part of a data set.

    Such as .DS_Store, .ipynb_checkpoints, and ._1.jpg and __MACOSX of archives made on macOS.
    """
    return name.startswith(".") or name == "__MACOSX"


class ImageCaption(BaseModel):
    """One JSON line. An image may have several lines."""

    model_config = ConfigDict(frozen=True)

    image: Annotated[
        str, Field(min_length=1, description="Path relative to the data folder or train/")
    ]
    caption: Annotated[str, Field(min_length=1)]
