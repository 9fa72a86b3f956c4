"""The seen-class bias, chosen without an image of an unseen class.

The classes that `left_out.leave_out` leaves out compete with the others as unseen classes do with
seen ones. The best bias there, averaged over several choices of left-out classes, is the student's.

Notable: the backbone has seen the left-out classes, so this is a proxy for a whole training without
them, at a fraction of its cost. On two students of the demo's world and a linear one on real photos
it gave 92, 95 and 93 % of the harmonic mean of the best bias. RIDGE was set on these same three, so
these shares flatter it; with a RIDGE of 0.01 they were 96, 98 and 89 %.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.evaluation.joint import best_point, outcomes
from distill.evaluation.left_out.classes import LeftOut


def choose_seen_bias(
    folds: Sequence[LeftOut], targets: Tensor, cosines: Tensor, text: Tensor
) -> float:
    """The bias to take from the cosines of seen classes; 0 without folds.

    `targets` [validation images] index `text` [seen classes, dim], the unit text features;
    `cosines` [validation images, seen classes] are the student's own.
    """
    biases = [_best_bias(fold, targets, cosines, text) for fold in folds]
    return sum(biases) / len(biases) if biases else 0.0


def _best_bias(fold: LeftOut, targets: Tensor, cosines: Tensor, text: Tensor) -> float:
    """The best bias where the left-out classes are the unseen ones."""
    refitted = fold.features @ text.T
    unseen = torch.isin(targets, fold.classes)
    is_seen = ~torch.isin(torch.arange(len(text)), fold.classes)
    decided = outcomes(
        refitted[~unseen], targets[~unseen], refitted[unseen], targets[unseen], is_seen
    )
    # The refitted layer's cosines are spread more or less than the student's.
    spread = _median_margin(refitted[~unseen])
    scale = _median_margin(cosines[~unseen]) / spread if spread > 0 else 1.0
    return scale * best_point(decided.curve()).bias


def _median_margin(scores: Tensor) -> float:
    """Median of the best score less the second one, of `scores` [images, classes]."""
    best = scores.double().topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).median())
