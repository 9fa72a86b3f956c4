"""What training minimises: the losses that have a weight, each of them named as in the config."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from contract import TrainConfig
from distill.method import losses


@dataclass(frozen=True)
class Batch:
    """The features of a batch of images; they need not be of unit length."""

    student: Tensor  # [batch, dim]
    teacher: Tensor  # [batch, dim]
    text: Tensor  # [classes, dim]
    targets: Tensor  # [batch] indices into `text`
    captions: Tensor | None  # [batch, dim], zeros where an image has none


def measure(batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """The value, unweighted, of each loss that has a weight."""
    return {name: LOSSES[name](batch, config) for name, weight in config.losses if weight}


class Balance(nn.Module):
    """The sum of the losses, each with its weight: as in the config, or learned from there on.

    Learned as in Kendall et al. (CVPR 2018, arXiv 1705.07115): each loss L has a log variance s
    and enters as exp(−s) · L + s / 2, or as exp(−s) · L / 2 + s / 2 where it is a squared distance.
    A loss that stays large is given less weight, and the term s / 2 keeps it from being given none.
    """

    fixed: Tensor  # [losses]

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        weights = {name: weight for name, weight in config.losses if weight}
        self.names = tuple(weights)
        scale = [0.5 if config.adaptive_weights and name in GAUSSIAN else 1.0 for name in weights]
        self.register_buffer(
            "fixed", torch.tensor(list(weights.values())) * torch.tensor(scale), persistent=False
        )
        self.log_variance = None
        if config.adaptive_weights:  # from a sum in which each loss has the weight of the config
            start = [math.log(each) for each in scale]
            self.log_variance = nn.Parameter(torch.tensor(start))

    def forward(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The loss to minimise, of the value of each loss that has a weight."""
        values = torch.stack([parts[name] for name in self.names])
        if self.log_variance is None:
            return (self.fixed * values).sum()
        return (self._weights() * values + self.log_variance / 2).sum()

    @torch.no_grad()
    def weights(self) -> dict[str, float]:
        """The weight of each loss, as it is now."""
        return dict(zip(self.names, self._weights().tolist(), strict=True))

    def _weights(self) -> Tensor:
        return self.fixed if self.log_variance is None else self.fixed * (-self.log_variance).exp()


def _vlprox(batch: Batch, config: TrainConfig) -> Tensor:
    return losses.l_vlprox(
        batch.student,
        batch.teacher,
        batch.text,
        batch.targets if config.vlprox_filter else None,
        k=config.vlprox_k,
        temperature=config.temperature,
    )


def _cap(batch: Batch, config: TrainConfig) -> Tensor:
    """L_cap among the images that have a caption; 0 where none has."""
    if batch.captions is None:
        raise ValueError("L_cap has a weight, but there are no captions")
    captioned = batch.captions.any(dim=1)
    if not captioned.any():
        return batch.student.sum() * 0
    return losses.l_cap(
        batch.student[captioned],
        batch.captions[captioned],
        batch.targets[captioned],
        temperature=config.temperature,
    )


GAUSSIAN: Final = frozenset({"mse", "mse_unnormalised"})  # likelihoods of a squared distance
LOSSES: Final[dict[str, Callable[[Batch, TrainConfig], Tensor]]] = {
    "cls": lambda b, c: losses.l_cls(b.student, b.text, b.targets, temperature=c.temperature),
    "mse": lambda b, _: losses.l_mse(b.student, b.teacher),
    "mse_unnormalised": lambda b, _: losses.l_mse_unnormalised(b.student, b.teacher),
    "im_cst": lambda b, c: losses.l_im_cst(b.student, b.teacher, temperature=c.temperature),
    "im_cst_distance": lambda b, c: losses.l_im_cst_distance(
        b.student, b.teacher, temperature=c.temperature
    ),
    "vlprox": _vlprox,
    "cap": _cap,
}
