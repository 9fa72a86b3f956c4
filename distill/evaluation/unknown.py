"""Scores that distinguish images of seen classes from images of unknown classes.

cosine                the best cosine with the text of a seen class
softmax               the best probability of a seen class (MCM, arXiv 2211.13445)
normalised            the best standardised cosine (see `score_norm`)
cosine, look-alikes   the best cosine minus the best cosine with a look-alike
softmax, look-alikes  the best probability with look-alikes as classes (EOE, arXiv 2406.00806)

Images of unseen classes are used only to evaluate the scores.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contract import UnknownScore
from distill.evaluation.calibration import auroc, false_positive_rate
from distill.evaluation.score_norm import ScoreNorm

KNOWN_SHARE: Final = 0.95  # of seen images that a threshold for unknown ones accepts


@dataclass(frozen=True)
class Scorer:
    """Scores images by the unit features `text` [seen classes, dim]; high for seen classes.

    `norm` has the moments of the training images. `look_alikes` [look-alikes, dim] are unit text
    features, if there are any.
    """

    text: Tensor
    temperature: float
    norm: ScoreNorm
    look_alikes: Tensor | None = None

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """Each score [images] by name; `features` [images, dim] need not be normalised."""
        images = normalize(features, dim=1)
        cosines = images @ self.text.T
        scores = {
            "cosine": _best(cosines),
            "softmax": _best(self._softmax(cosines)),
            "normalised": _best(self.norm.scores(images, self.text)),
        }
        if self.look_alikes is None:
            return scores
        look_alike_cosines = images @ self.look_alikes.T
        probabilities = self._softmax(torch.cat([cosines, look_alike_cosines], dim=1))
        return scores | {
            "cosine, look-alikes": _best(cosines) - _best(look_alike_cosines),
            "softmax, look-alikes": _best(probabilities[:, : len(self.text)]),
        }

    def _softmax(self, cosines: Tensor) -> Tensor:
        return torch.softmax(cosines.double() / self.temperature, dim=1)


def compare_scores(scorer: Scorer, seen: Tensor, unseen: Tensor) -> tuple[UnknownScore, ...]:
    """AUROC and FPR of each score, from features of `seen` and `unseen` images [images, dim]."""
    known, unknown = scorer.scores(seen), scorer.scores(unseen)
    return tuple(
        UnknownScore(
            score=name,
            auroc=auroc(known[name], unknown[name]),
            fpr_at_95_tpr=false_positive_rate(known[name], unknown[name], KNOWN_SHARE),
        )
        for name in known
    )


def rejected(features: Tensor, text: Tensor, look_alikes: Tensor) -> float:
    """Percentage of images that are more similar to a look-alike than to any class.

    `features` [images, dim] need not be normalised, `text` [classes, dim] and `look_alikes`
    [look-alikes, dim] are unit features.
    """
    images = normalize(features, dim=1)
    return 100 * float((_best(images @ look_alikes.T) > _best(images @ text.T)).double().mean())


def _best(scores: Tensor) -> Tensor:
    return scores.max(dim=1).values
