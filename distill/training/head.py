"""Training of only a student's last layer, on backbone features that are computed once.

A step costs a matrix product instead of a pass through the network. Random views are encoded
in advance, and each batch uses a random one of an image's views.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contract import TrainConfig
from distill.errors import UserError
from distill.method.objective import Features, LossBalance, compute_losses
from distill.training.loop import CLIP_NORM, make_objective
from distill.training.optimisers import make_optimiser
from distill.training.schedule import learning_rate


@dataclass(frozen=True)
class Step:
    """The progress of a training."""

    done: int  # steps
    total: int
    epoch: int  # from 1
    epochs: int
    images: int  # trained on so far


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class HeadImages:
    """Backbone features, targets and teacher features of images, on one device."""

    features: Tensor  # [images, views, width] of random views
    targets: Tensor  # [images] rows of the texts
    teacher: Tensor  # [images, dim]

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: Tensor | slice) -> "HeadImages":
        """Some of the images."""
        return HeadImages(self.features[rows], self.targets[rows], self.teacher[rows])


def batches(config: TrainConfig, replayed: int, new: int) -> tuple[int, int]:
    """The batch size and the number of batches per epoch for `replayed` and `new` images."""
    size = min(config.batch_size, 2 * replayed, replayed + new)
    return size, (replayed + new) // size


def fit_head(
    config: TrainConfig,
    head: nn.Linear,
    replayed: HeadImages,
    new: HeadImages,
    text: Tensor,
    *,
    on_step: OnStep = lambda _step: None,
) -> nn.Linear:
    """A copy of `head` trained on `new` and `replayed` images with the losses of `config`.

    Each batch has up to half of its images from `new` and the others from `replayed`, without
    duplicates. `text` [classes, dim] has the texts of all classes, which compete in the losses. An
    epoch has as many images as `new` and `replayed` together.

    Raises:
        UserError: the training diverged.
    """
    generator = torch.Generator().manual_seed(config.seed)
    size, steps = batches(config, len(replayed), len(new))
    share = min(size // 2, len(new))
    head, objective = deepcopy(head).train(), make_objective(config)
    balance = LossBalance(objective).to(text.device)
    optimiser = make_optimiser(config, nn.ModuleList([head, balance]))
    for step in range(total := steps * config.epochs):
        parts = [
            _sample(images, count, generator)
            for images, count in ((replayed, size - share), (new, share))
        ]
        features, targets, teacher = (torch.cat(both) for both in zip(*parts, strict=True))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step, steps, total)
        output = head(features)
        if not bool(output.isfinite().all()):
            raise UserError(
                f"finetuning diverged with a learning rate of {config.learning_rate:g}: use "
                "--method prototypes"
            )
        losses = compute_losses(Features(output, teacher, text, targets, None), objective)
        balance(losses).backward()
        nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_step(Step(step + 1, total, step // steps + 1, config.epochs, (step + 1) * size))
    return head.eval()


def _sample(
    images: HeadImages, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A random view of each of `count` different images, their targets and teacher features."""
    rows = torch.randperm(len(images), generator=generator)[:count]
    views = torch.randint(images.features.shape[1], (count,), generator=generator)
    device = images.features.device
    rows, views = rows.to(device), views.to(device)
    return images.features[rows, views], images.targets[rows], images.teacher[rows]
