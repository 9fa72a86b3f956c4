"""Seen classes that stand in for unseen ones, so that choices need no image of an unseen class.

The student's last layer is fitted again by ridge regression, from its backbone's features to the
class texts, on all but some of the seen classes. What holds there for the left-out classes is taken
to hold for unseen ones. It is a proxy for a whole training without them, at a fraction of its cost:
the backbone has seen the left-out classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

RIDGE: Final = 0.3  # times the mean squared feature
SHUFFLES: Final = 3  # ways to divide the seen classes


@dataclass(frozen=True)
class SeenImages:
    """Images of seen classes, as the student's backbone sees them.

    `features` [images, width] are what goes into its last layer, `targets` [images] index the rows
    of the seen classes' texts.
    """

    features: Tensor
    targets: Tensor


@dataclass(frozen=True)
class LeftOut:
    """Unit `features` [validation images, dim] of a last layer fitted without some seen classes.

    `classes` are the rows of their texts.
    """

    classes: Tensor
    features: Tensor


def leave_out(
    train: SeenImages, validation: SeenImages, text: Tensor, unseen: int
) -> tuple[LeftOut, ...]:
    """Several ways to leave out seen classes that have validation images.

    `text` [seen classes, dim] are unit text features, `unseen` is the number of unseen classes: in
    proportion, as many seen ones are left out at a time. Empty where fewer than four classes have
    validation images, or there is no unseen class.
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
    """The layer for each fold, fitted by ridge regression on the images of all other classes.

    A fold holds the classes to leave out: rows of `text` [classes, dim]. Yields weights
    [width + 1, dim] float64, the last row an offset. The sums over images are made once; each fold
    subtracts those of its own images.
    """
    inputs, wanted = _with_ones(train.features), text[train.targets].double()
    squares, products = inputs.T @ inputs, inputs.T @ wanted
    identity = torch.eye(len(squares), dtype=torch.float64)
    for left_out in folds:
        images = torch.isin(train.targets, left_out)
        own = inputs[images]
        kept = squares - own.T @ own
        penalty = RIDGE * kept.diagonal().mean() * identity
        yield torch.linalg.solve(kept + penalty, products - own.T @ wanted[images])


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
