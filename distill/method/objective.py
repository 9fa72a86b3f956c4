"""The training objective: a weighted sum of the paper's losses, with fixed or learned weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from distill.method import losses


@dataclass(frozen=True)
class Features:
    """The features of a batch of images. They need not be normalised."""

    student: Tensor  # [batch, dim]
    teacher: Tensor  # [batch, dim]
    text: Tensor  # [classes, dim]
    targets: Tensor  # [batch] indices into `text`
    captions: Tensor | None  # [batch, dim], zeros for images without a caption


@dataclass(frozen=True)
class Objective:
    """The losses to minimise. `weights` are by the names of LOSSES; 0 disables a loss."""

    weights: Mapping[str, float]
    temperature: float = 0.07
    vlprox_k: int = 256
    vlprox_filter: bool = True
    adaptive_weights: bool = False  # learn the weights, starting from the given ones

    @property
    def enabled(self) -> dict[str, float]:
        """The weights that are not 0."""
        return {name: weight for name, weight in self.weights.items() if weight}


def compute_losses(features: Features, objective: Objective) -> dict[str, Tensor]:
    """The unweighted value (0-d) of each enabled loss."""
    return {name: LOSSES[name](features, objective) for name in objective.enabled}


class LossBalance(nn.Module):
    """The weighted sum of the losses, with fixed or learned weights.

    Weights are learned as in Kendall et al. (CVPR 2018, arXiv 1705.07115): each loss L has a log
    variance s and contributes exp(−s) · L + s / 2, or exp(−s) · L / 2 + s / 2 if it is a squared
    distance. A loss that stays large gets a lower weight; the term s / 2 keeps the weight from
    vanishing.
    """

    fixed: Tensor  # [losses]

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        weights, adaptive = objective.enabled, objective.adaptive_weights
        self.names = tuple(weights)
        scale = [0.5 if adaptive and name in GAUSSIAN else 1.0 for name in weights]
        self.register_buffer(
            "fixed", torch.tensor(list(weights.values())) * torch.tensor(scale), persistent=False
        )
        self.log_variance = None
        if adaptive:  # start with the weights of the objective
            start = [math.log(factor) for factor in scale]
            self.log_variance = nn.Parameter(torch.tensor(start))

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """The loss to minimise, given the value of each enabled loss."""
        stacked = torch.stack([values[name] for name in self.names])
        if self.log_variance is None:
            return (self.fixed * stacked).sum()
        return (self._weights() * stacked + self.log_variance / 2).sum()

    @torch.no_grad()
    def weights(self) -> dict[str, float]:
        """The current weight of each enabled loss."""
        return dict(zip(self.names, self._weights().tolist(), strict=True))

    def _weights(self) -> Tensor:
        return self.fixed if self.log_variance is None else self.fixed * (-self.log_variance).exp()


def _vlprox(features: Features, objective: Objective) -> Tensor:
    return losses.l_vlprox(
        features.student,
        features.teacher,
        features.text,
        features.targets if objective.vlprox_filter else None,
        k=objective.vlprox_k,
        temperature=objective.temperature,
    )


def _cap(features: Features, objective: Objective) -> Tensor:
    """L_cap over the images that have a caption; 0 if none has."""
    if features.captions is None:
        raise ValueError("L_cap has a weight, but there are no captions")
    captioned = features.captions.any(dim=1)
    if not captioned.any():
        return features.student.sum() * 0
    return losses.l_cap(
        features.student[captioned],
        features.captions[captioned],
        features.targets[captioned],
        temperature=objective.temperature,
    )


GAUSSIAN: Final = frozenset({"mse", "mse_unnormalised"})  # squared distances
LOSSES: Final[dict[str, Callable[[Features, Objective], Tensor]]] = {
    "cls": lambda f, o: losses.l_cls(f.student, f.text, f.targets, temperature=o.temperature),
    "mse": lambda f, _: losses.l_mse(f.student, f.teacher),
    "mse_unnormalised": lambda f, _: losses.l_mse_unnormalised(f.student, f.teacher),
    "im_cst": lambda f, o: losses.l_im_cst(f.student, f.teacher, temperature=o.temperature),
    "im_cst_distance": lambda f, o: losses.l_im_cst_distance(
        f.student, f.teacher, temperature=o.temperature
    ),
    "vlprox": _vlprox,
    "cap": _cap,
}
