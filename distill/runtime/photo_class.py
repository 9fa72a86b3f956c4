"""A row of the text bank for a class with a text and example photos. Needs only numpy.

Photos have higher cosines with other photos than any text has. The mixed row is therefore scaled
and shifted until photos of seen classes have the same mean and standard deviation of scores with it
as with the text alone, so that it competes fairly with classes that have only a text.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distill.errors import ClassifierError

Features = NDArray[np.float32]
MIN_DEVIATION: Final = 1e-6  # of cosines, in case all photos have the same features


@dataclass(frozen=True)
class PhotoStatistics:
    """Mean [dim] and covariance [dim, dim] of the student's unit features of seen photos."""

    mean: Features
    covariance: Features

    @classmethod
    def of(cls, features: Features) -> Self:
        """The statistics of unit `features` [photos, dim]."""
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(mean, centred.T @ centred / len(features))

    def save(self) -> bytes:
        """The content of a safetensors file."""
        return save({"mean": self.mean, "covariance": self.covariance})

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Read what `save` returned. Raises ClassifierError if `content` is anything else."""
        try:
            tensors = load(content)
            return cls(tensors["mean"], tensors["covariance"])
        except (SafetensorError, KeyError):
            raise ClassifierError(
                "the statistics of the classifier's photos are damaged: export it again"
            ) from None

    def mix(self, text: Features, photos: Features, text_photos: float) -> tuple[Features, float]:
        """A row [dim] and an offset: the score of an image is image · row + offset.

        `text` [dim] and `photos` [photos, dim] are unit features; the text weighs as much as
        `text_photos` photos.
        """
        mean = photos.mean(axis=0)
        mixed = text_photos * text + len(photos) * mean / np.linalg.norm(mean)
        mixed /= np.linalg.norm(mixed)
        spread = np.sqrt(mixed @ self.covariance @ mixed)
        scale = np.sqrt(text @ self.covariance @ text) / spread if spread > 0 else 1.0
        row = (scale * mixed).astype(np.float32)
        return row, float(self.mean @ text - self.mean @ row)

    def deviations(self, texts: Features) -> Features:
        """Standard deviations [texts] of the cosines of seen photos with `texts` [texts, dim]."""
        variances = ((texts @ self.covariance) * texts).sum(axis=1)
        deviations: Features = np.sqrt(np.maximum(variances, MIN_DEVIATION**2))
        return deviations

    def evidence(self, image: Features, texts: Features) -> Features:
        """Z-scores [texts] of the cosines with `image`, relative to those of seen photos.

        `image` [dim] and `texts` [texts, dim] are unit features.
        """
        evidence: Features = np.divide(texts @ (image - self.mean), self.deviations(texts))
        return evidence
