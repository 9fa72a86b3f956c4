"""Standardised class scores: Z-scores of cosines relative to the training images.

The cosine of a text with an image has no absolute meaning: some texts are close to many images and
some to none, and a small student distorts features far from its training data. Each class's cosine
is therefore standardised by its mean and deviation over the training images, as speaker
verification does with impostor scores (Z-norm: Auckenthaler, Carey and Lloyd-Thomas, 2000). This
needs no labels and no images of the class, so it also applies to classes that are added later.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.data.files.tensor_file import DamagedFile, read_tensor, write_tensor
from distill.errors import DataError

FILE: Final = "score_norm.safetensors"
CHUNK: Final = 16_384  # images whose moments are computed at a time
MIN_DEVIATION: Final = 1e-6  # of cosines, in case all images have the same features


@dataclass(frozen=True)
class ScoreNorm:
    """First and second moments of a model's unit features of the training images.

    The cosines of a unit text feature t with those images have the mean mean · t and the variance
    t · covariance · t.
    """

    mean: Tensor  # [dim]
    covariance: Tensor  # [dim, dim]

    @classmethod
    def of(cls, features: Tensor) -> "ScoreNorm":
        """The moments of `features` [images, dim], which need not be normalised."""
        dim = features.shape[1]
        total = torch.zeros(dim, dtype=torch.float64)
        products = torch.zeros(dim, dim, dtype=torch.float64)
        for chunk in torch.split(features, CHUNK):  # all features in float64 may not fit in memory
            unit = normalize(chunk.double(), dim=1)
            total += unit.sum(dim=0)
            products += unit.T @ unit
        mean = total / len(features)
        covariance = products / len(features) - torch.outer(mean, mean)
        return cls(mean.float(), covariance.float())

    def scores(self, features: Tensor, text: Tensor) -> Tensor:
        """Standardised cosines [images, classes].

        `features` [images, dim] need not be normalised, `text` [classes, dim] must be.
        """
        variance = ((text @ self.covariance) * text).sum(dim=1)
        deviation = variance.clamp(min=MIN_DEVIATION**2).sqrt()
        return (normalize(features, dim=1) @ text.T - text @ self.mean) / deviation

    def save(self, path: Path) -> None:
        """Write the moments to `path`.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            write_tensor(path, torch.cat([self.mean[None], self.covariance]))
        except OSError as error:
            raise DataError(f"cannot write {path} ({error.strerror}): free some space") from None

    @classmethod
    def load(cls, path: Path) -> "ScoreNorm":
        """Read the file that `save` wrote.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            moments = read_tensor(path)[0]
            if moments.ndim != 2 or len(moments) != moments.shape[1] + 1:
                raise DamagedFile("the shape is wrong")
        except (DamagedFile, OSError):
            raise DataError(
                f"{path}, the score normalisation, is missing or damaged: train with --resume into "
                "the same folder, which writes it again"
            ) from None
        return cls(moments[0], moments[1:])
