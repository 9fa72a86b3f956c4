"""A caption of one image, a line of the file that the service writes and training reads (L_cap)."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

# The files that both sides take for images.
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
    | {".avif", ".heic", ".heif"}
)


class ImageCaption(BaseModel):
    """One line of JSON. Several lines of one image are several captions of it."""

    model_config = ConfigDict(frozen=True)

    image: Annotated[str, Field(min_length=1, description="Below the data folder, or train/")]
    caption: Annotated[str, Field(min_length=1)]
