"""The student as an ONNX model: photos to unit features, without torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.files.image_file import square
from distill.runtime.text_encoder import Features, open_session

Pixels = NDArray[np.uint8]


class ImageEncoder:
    """Encodes square images of `image_size` pixels with `model` (ONNX) on `threads` threads."""

    def __init__(self, model: bytes | Path, image_size: int, threads: int | None = None) -> None:
        self._session, self._size = open_session(model, threads), image_size

    def pixels(self, image: Image.Image) -> Pixels:
        """The resized centre square of `image`, the encoder's input: uint8 [3, size, size]."""
        return square(image.convert("RGB"), self._size)

    def encode(self, pixels: Pixels) -> Features:
        """Unit features [batch, dim] of uint8 pixels [batch, 3, size, size]."""
        features: Features = self._session.run(None, {"pixels": pixels})[0]
        return features
