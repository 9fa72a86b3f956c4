"""Scores of classes in units of what they are among training images, so that none wins by default.

The cosine of a text with an image says little before one knows what it is with images at large:
some texts are near many things and some near none, and a small student blurs what is far from what
it was trained on. So each class's cosine is standardised by its mean and deviation over the
training images, as speaker verification does with the scores of impostors (Z-norm: Auckenthaler,
Carey and Lloyd-Thomas, 2000). It takes no label and no image of the class, so it holds for classes
that come later.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.data.tensor_file import DamagedFile, read_tensor, write_tensor
from distill.errors import DataError

FILE: Final = "score_norm.safetensors"
LEAST_DEVIATION: Final = 1e-6  # of a cosine, where all training images are one to the model


@dataclass(frozen=True)
class ScoreNorm:
    """First and second moments of a model's unit features of the training images.

    The scores of any text over those images have the mean mean·t and the variance t·covariance·t.
    """

    mean: Tensor  # [dim]
    covariance: Tensor  # [dim, dim]

    @classmethod
    def of(cls, features: Tensor) -> "ScoreNorm":
        """Of `features` [images, dim], which need no normalisation."""
        unit = normalize(features.double(), dim=1)
        mean = unit.mean(dim=0)
        covariance = unit.T @ unit / len(unit) - torch.outer(mean, mean)
        return cls(mean.float(), covariance.float())

    def scores(self, features: Tensor, text: Tensor) -> Tensor:
        """Standardised cosines [images, classes].

        `features` [images, dim] need no normalisation, `text` [classes, dim] is unit.
        """
        variance = ((text @ self.covariance) * text).sum(dim=1)
        deviation = variance.clamp(min=LEAST_DEVIATION**2).sqrt()
        return (normalize(features, dim=1) @ text.T - text @ self.mean) / deviation

    def save(self, path: Path) -> None:
        """Write both to `path`.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            write_tensor(path, torch.cat([self.mean[None], self.covariance]))
        except OSError as error:
            raise DataError(f"cannot write {path} ({error.strerror}): free some space") from None

    @classmethod
    def load(cls, path: Path) -> "ScoreNorm":
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            both = read_tensor(path)[0]
            if both.ndim != 2 or len(both) != both.shape[1] + 1:
                raise DamagedFile("the shape is wrong")
        except (DamagedFile, OSError):
            raise DataError(
                f"{path}, by which scores are normalised, is missing or damaged: train with "
                "--resume into the same folder, which writes it anew"
            ) from None
        return cls(both[0], both[1:])
