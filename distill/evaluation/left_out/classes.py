"""Left-out seen classes as stand-ins for unseen classes, so that choices need no unseen images.

The student's last layer is refitted by ridge regression, from backbone features to class texts, on
all seen classes except some. The left-out classes then take the role of unseen classes. This
approximates a full training without them at a fraction of the cost; the backbone was still trained
on the left-out classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

RIDGE: Final = 0.3  # penalty, relative to the mean squared feature
SHUFFLES: Final = 3  # random divisions of the seen classes into folds


@dataclass(frozen=True)
class SeenImages:
    """Backbone features of images of seen classes.

    `features` [images, width] are the inputs of the last layer; `targets` [images] index the rows
    of the seen classes' texts.
    """

    features: Tensor
    targets: Tensor


@dataclass(frozen=True)
class LeftOut:
    """Unit `features` [validation images, dim] of a last layer fitted without some seen classes.

    `classes` has the text rows of the left-out classes.
    """

    classes: Tensor
    features: Tensor


def leave_out(
    train: SeenImages, validation: SeenImages, text: Tensor, unseen: int
) -> tuple[LeftOut, ...]:
    """Refit the last layer for several choices of left-out seen classes with validation images.

    `text` [seen classes, dim] are unit text features. `unseen` is the number of unseen classes; the
    same proportion of seen classes is left out in each fold. Returns no folds if fewer than four
    classes have validation images or there is no unseen class.
    """
    classes = torch.unique(validation.targets)
    if len(classes) < 4 or not unseen:
        return ()
    count = max(1, round(len(classes) * unseen / (len(classes) + unseen)))
    count = min(count, len(classes) // 2)
    generator = torch.Generator().manual_seed(0)
    folds = [
        left_out
        for order in (torch.randperm(len(classes), generator=generator) for _ in range(SHUFFLES))
        for left_out in classes[order][: len(classes) // count * count].split(count)
    ]
    inputs = _with_ones(validation.features)
    return tuple(
        LeftOut(left_out, normalize(inputs @ layer, dim=1).float())
        for left_out, layer in zip(folds, fit_without(train, text, folds), strict=True)
    )


def fit_without(train: SeenImages, text: Tensor, folds: Sequence[Tensor]) -> Iterator[Tensor]:
    """The last layer for each fold, fitted by ridge regression on the images of all other classes.

    A fold has the classes to leave out: rows of `text` [classes, dim]. Yields weights
    [width + 1, dim] float64 whose last row is the bias. The sums over all images are computed once;
    each fold subtracts those of its own images.
    """
    inputs, outputs = _with_ones(train.features), text[train.targets].double()
    squares, products = inputs.T @ inputs, inputs.T @ outputs
    identity = torch.eye(len(squares), dtype=torch.float64)
    for left_out in folds:
        images = torch.isin(train.targets, left_out)
        own = inputs[images]
        kept = squares - own.T @ own
        penalty = RIDGE * kept.diagonal().mean() * identity
        yield torch.linalg.solve(kept + penalty, products - own.T @ outputs[images])


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
