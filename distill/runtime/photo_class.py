"""A class described by photos besides its text, as a row of the text bank. Needs numpy alone.

A photo's feature is much closer to other photos than any text is. So the mixed row is scaled and
shifted until photos of seen classes score with it as they do with the text alone, on average and in
their spread; it then competes with classes that have only a text.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distill.errors import ClassifierError

Features = NDArray[np.float32]
MIN_DEVIATION: Final = 1e-6  # of a cosine, if all photos have the same feature


@dataclass(frozen=True)
class PhotoStatistics:
    """Mean [dim] and covariance [dim, dim] of the student's unit features of seen photos."""

    mean: Features
    covariance: Features

    @classmethod
    def of(cls, features: Features) -> Self:
        """Those of unit `features` [photos, dim]."""
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / len(features))

    def save(self) -> bytes:
        """As the content of a safetensors file."""
        return save({"mean": self.mean, "covariance": self.covariance})

    @classmethod
    def read(cls, content: bytes) -> Self:
        """From the content of a file that `save` made. Raises ClassifierError for any other."""
        try:
            tensors = load(content)
            return cls(tensors["mean"], tensors["covariance"])
        except (SafetensorError, KeyError):
            raise ClassifierError(
                "the statistics of the classifier's photos are damaged: export it again"
            ) from None

    def mix(self, text: Features, photos: Features, text_photos: float) -> tuple[Features, float]:
        """A row [dim] and an offset: the score of an image is its cosine with the row + the offset.

        `text` [dim] is the unit text feature, `photos` [photos, dim] unit features; the text weighs
        as much as `text_photos` photos.
        """
        mean = photos.mean(axis=0)
        mixed = text_photos * text + len(photos) * mean / np.linalg.norm(mean)
        mixed /= np.linalg.norm(mixed)
        spread = np.sqrt(mixed @ self.covariance @ mixed)
        scale = np.sqrt(text @ self.covariance @ text) / spread if spread > 0 else 1.0
        row = (scale * mixed).astype(np.float32)
        return row, float(self.mean @ text - self.mean @ row)

    def deviations(self, texts: Features) -> Features:
        """Deviations [texts] of the cosines of seen photos with unit text features [texts, dim]."""
        variances = ((texts @ self.covariance) * texts).sum(axis=1)
        deviations: Features = np.sqrt(np.maximum(variances, MIN_DEVIATION**2))
        return deviations

    def evidence(self, image: Features, texts: Features) -> Features:
        """How many deviations above its mean over seen photos each cosine [texts] is.

        `image` [dim] and `texts` [texts, dim] are unit features.
        """
        evidence: Features = np.divide(texts @ (image - self.mean), self.deviations(texts))
        return evidence
