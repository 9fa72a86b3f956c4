"""Seen and unseen classes competing for each image: generalised zero-shot classification.

A student has larger cosines with the classes that it was trained on, so images of unseen classes
are often assigned to seen classes. A bias subtracted from the cosines of seen classes trades one
accuracy for the other (calibrated stacking: Chao et al., ECCV 2016, arXiv 1605.04253). AUSUC is the
area under the curve of both accuracies over all biases, and H the harmonic mean at one point of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joint:
    """Top-1 in percent when all classes compete and `bias` is subtracted from seen classes."""

    seen: float
    unseen: float
    bias: float

    @property
    def harmonic_mean(self) -> float:
        """The harmonic mean of both accuracies; 0 if one of them is 0."""
        total = self.seen + self.unseen
        return 2 * self.seen * self.unseen / total if total else 0.0


@dataclass(frozen=True)
class Outcomes:
    """Margins and hits [images] of the images of seen classes, then of those of unseen classes.

    An image is assigned to a seen class if its `margin` is at least the bias, else to an unseen
    class. It is correct if that is the side of its own class and `right` is true.
    """

    margin: Tensor  # float64, best seen score − best unseen score
    right: Tensor  # bool, whether the best class on the side of the image's class is its class
    is_seen: Tensor

    def at(self, bias: float) -> Joint:
        """Both accuracies with `bias`."""
        hits = self.right & ((self.margin >= bias) == self.is_seen)
        seen, unseen = (
            100 * float(hits[part].double().mean()) for part in (self.is_seen, ~self.is_seen)
        )
        return Joint(seen, unseen, bias)

    def curve(self) -> list[Joint]:
        """The points of the curve in the order of increasing bias, one per distinct result.

        At the first point all images are assigned to seen classes, at the last to unseen classes.
        """
        margins = torch.unique(self.margin)  # sorted
        ends = torch.stack([margins[0] - 1, margins[-1] + 1])
        between = (margins[1:] + margins[:-1]) / 2
        biases = torch.cat([ends[:1], between, ends[1:]])
        seen = self._share(self.right & self.is_seen, self.is_seen, margins, above=True)
        unseen = self._share(self.right & ~self.is_seen, ~self.is_seen, margins, above=False)
        return [Joint(*row) for row in zip(seen, unseen, biases.tolist(), strict=True)]

    def _share(self, hits: Tensor, images: Tensor, margins: Tensor, *, above: bool) -> list[float]:
        """Percentage of `images` that are hits with a margin above (or below) each bias."""
        counts = torch.zeros(len(margins), dtype=torch.float64)
        indices = torch.searchsorted(margins, self.margin[hits])
        counts.scatter_add_(0, indices, torch.ones(len(indices), dtype=torch.float64))
        below = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        share: Tensor = 100 * (below[-1] - below if above else below) / images.sum()
        return share.tolist()


def outcomes(
    seen_scores: Tensor, seen_targets: Tensor, unseen_scores: Tensor, unseen_targets: Tensor,
    is_seen: Tensor,
) -> Outcomes:  # fmt: skip
    """The `Outcomes` of the images of seen and of unseen classes.

    `seen_scores` and `unseen_scores` [images, classes] are the scores of all classes,
    `seen_targets` and `unseen_targets` [images] index the classes, and `is_seen` [classes] marks
    the seen classes.
    """
    parts = []
    for scores, targets, own in (
        (seen_scores.double(), seen_targets, is_seen),
        (unseen_scores.double(), unseen_targets, ~is_seen),
    ):
        best = [
            scores.masked_fill(~side, -torch.inf).max(dim=1).values for side in (is_seen, ~is_seen)
        ]
        right = scores.masked_fill(~own, -torch.inf).argmax(dim=1) == targets
        parts.append((best[0] - best[1], right))
    margin, right = (torch.cat(both) for both in zip(*parts, strict=True))
    return Outcomes(margin, right, torch.arange(len(margin)) < len(seen_scores))


def best_point(curve: Sequence[Joint]) -> Joint:
    """The point with the largest harmonic mean; the middle one of several."""
    best = max(point.harmonic_mean for point in curve)
    points = [point for point in curve if point.harmonic_mean == best]
    return points[len(points) // 2]


def ausuc(curve: Sequence[Joint]) -> float:
    """Area under the `curve` of unseen over seen accuracy, 0 to 1, by the trapezoidal rule."""
    points = [(point.seen / 100, point.unseen / 100) for point in reversed(curve)]
    return sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(points))
