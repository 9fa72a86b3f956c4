"""A class described by its text and by some photos: how much each of them counts.

The class's feature is normalize(text_photos · w + k · p): w the unit text feature, p the unit mean
of the unit features of k photos. `text_photos` says how many photos the text is worth. It is chosen
on seen classes that were left out (see `left_out`): no image of an unseen class is looked at.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.evaluation.left_out.classes import LeftOut

CHOICES: Final = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 8.0, 16.0)
DEFAULT: Final = 1.0
COUNTS: Final = (1, 5, 16)  # photos of a class, as far as there are so many and one to test on
DRAWS: Final = 3


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Unit means [classes, dim] of the unit features [photos, dim] of each class."""
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype)
    return normalize(sums.index_add(0, targets, normalize(features, dim=1)), dim=1)


def fuse(text: Tensor, means: Tensor, count: int, text_photos: float) -> Tensor:
    """Unit features [classes, dim] of `text` and of the unit `means` of `count` photos a class."""
    return normalize(text_photos * text + count * means, dim=1)


def choose_text_photos(folds: Sequence[LeftOut], targets: Tensor, text: Tensor) -> float:
    """How many photos a text is worth, by the accuracy among left-out classes.

    `targets` [validation images] index `text` [seen classes, dim]. DEFAULT where no left-out class
    has a second image.
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
    """Share of right answers among the left-out classes by each of CHOICES, for one draw."""
    own = [(targets == row).nonzero()[:, 0] for row in fold.classes.tolist()]
    drawn = [rows[torch.randperm(len(rows), generator=generator)] for rows in own]
    support = torch.cat([rows[:count] for rows in drawn])
    rest = torch.cat([rows[count:] for rows in drawn])
    wanted = torch.cat([torch.full((len(rows) - count,), i) for i, rows in enumerate(drawn)])
    means = class_means(
        fold.features[support], torch.arange(len(own)).repeat_interleave(count), len(own)
    )
    banks = [fuse(text[fold.classes], means, count, choice) for choice in CHOICES]
    found = torch.stack([(fold.features[rest] @ bank.T).argmax(dim=1) for bank in banks])
    return (found == wanted).double().mean(dim=1)
