"""The bias against seen classes, chosen without images of unseen classes.

The left-out classes of `left_out.classes` compete with the other seen classes as unseen classes do
with seen classes. The student's bias is the best bias there, averaged over several folds.

The backbone was trained on the left-out classes, so this only approximates a full training without
them. On two students of the demo and a linear one on real photos it gave 92, 95 and 93 % of the
harmonic mean of the best bias. RIDGE was chosen on the same three, so these figures are optimistic;
with a RIDGE of 0.01 they were 96, 98 and 89 %.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.evaluation.joint import best_point, outcomes
from distill.evaluation.left_out.classes import LeftOut


def choose_seen_bias(
    folds: Sequence[LeftOut], targets: Tensor, cosines: Tensor, text: Tensor
) -> float:
    """The bias to subtract from the cosines of seen classes; 0 without folds.

    `targets` [validation images] index `text` [seen classes, dim], the unit text features;
    `cosines` [validation images, seen classes] are those of the student itself.
    """
    biases = [_best_bias(fold, targets, cosines, text) for fold in folds]
    return sum(biases) / len(biases) if biases else 0.0


def _best_bias(fold: LeftOut, targets: Tensor, cosines: Tensor, text: Tensor) -> float:
    """The best bias with the left-out classes as unseen classes, at the student's scale."""
    refitted = fold.features @ text.T
    unseen = torch.isin(targets, fold.classes)
    is_seen = ~torch.isin(torch.arange(len(text)), fold.classes)
    results = outcomes(
        refitted[~unseen], targets[~unseen], refitted[unseen], targets[unseen], is_seen
    )
    # The cosines of the refitted layer may have another spread than the student's.
    spread = _median_margin(refitted[~unseen])
    scale = _median_margin(cosines[~unseen]) / spread if spread > 0 else 1.0
    return scale * best_point(results.curve()).bias


def _median_margin(scores: Tensor) -> float:
    """Median difference of the best and the second best of `scores` [images, classes]."""
    best = scores.double().topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).median())
