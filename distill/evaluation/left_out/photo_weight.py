"""Weight of the text for a class that has a text and some example photos.

The feature of the class is normalize(text_photos · w + k · p), where w is the unit text feature and
p the unit mean of the unit features of k photos: the text weighs as much as `text_photos` photos.
The weight is chosen on left-out seen classes (see `left_out.classes`), without unseen images.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.evaluation.left_out.classes import LeftOut

CHOICES: Final = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0, 16.0)
DEFAULT: Final = 1.0
COUNTS: Final = (1, 5, 16)  # example photos per class, if at least one is left to test on
DRAWS: Final = 3


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Unit means [classes, dim] of the normalised `features` [photos, dim] of each class."""
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype)
    return normalize(sums.index_add(0, targets, normalize(features, dim=1)), dim=1)


def fuse(text: Tensor, means: Tensor, count: int, text_photos: float) -> Tensor:
    """Unit features [classes, dim] from `text` and the unit `means` of `count` photos per class."""
    return normalize(text_photos * text + count * means, dim=1)


def choose_text_photos(folds: Sequence[LeftOut], targets: Tensor, text: Tensor) -> float:
    """The weight of a text, in photos, with the best accuracy among left-out classes.

    `targets` [validation images] index `text` [seen classes, dim]. DEFAULT if no fold has at least
    two images of each class.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [
        _accuracies(fold, targets, text, count, generator)
        for fold in folds
        for count in COUNTS
        if _fewest_images(fold, targets) > count
        for _ in range(DRAWS)
    ]
    return CHOICES[int(torch.stack(rows).mean(dim=0).argmax())] if rows else DEFAULT


def _fewest_images(fold: LeftOut, targets: Tensor) -> int:
    return int(torch.bincount(targets)[fold.classes].min())


def _accuracies(
    fold: LeftOut, targets: Tensor, text: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Accuracy [choices] among the left-out classes with each of CHOICES, for one random draw."""
    by_class = [(targets == row).nonzero()[:, 0] for row in fold.classes.tolist()]
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in by_class]
    support = torch.cat([rows[:count] for rows in shuffled])
    queries = torch.cat([rows[count:] for rows in shuffled])
    expected = torch.cat([torch.full((len(rows) - count,), i) for i, rows in enumerate(shuffled)])
    means = class_means(
        fold.features[support], torch.arange(len(by_class)).repeat_interleave(count), len(by_class)
    )
    banks = [fuse(text[fold.classes], means, count, choice) for choice in CHOICES]
    predicted = torch.stack([(fold.features[queries] @ bank.T).argmax(dim=1) for bank in banks])
    return (predicted == expected).double().mean(dim=1)
