"""Optimisers and learning rates, as functions of the config and the step."""

import math
from typing import Any

import torch
from timm.optim import Muon, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from contract import TrainConfig
from distill.models.precision import muon_precision


def make_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all parameters of `model`; there is no weight decay on 1-d ones.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the step of each
    matrix, and of each convolution taken as one, orthogonal; 1-d parameters go by AdamW. Its
    learning rate is scaled so that steps are as long as AdamW's (arXiv 2502.16982).
    """
    groups = param_groups_weight_decay(model, config.weight_decay)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=True)
    if config.optimiser == "muon":
        return _Muon(groups, lr=config.learning_rate)
    return _AdamW(groups, lr=config.learning_rate, fused=True)  # 5 times quicker


class _AdamW(torch.optim.AdamW):
    """Torch's, a third quicker on a CPU for what has its channels last.

    Its fused kernel copies each gradient that is not contiguous, and looks at none of the copies.
    """

    def _init_group(self, group: Any, *lists: Any) -> Any:  # noqa: ANN401 - torch's own signature
        has_complex = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        for tensors in lists[:4]:  # weights, gradients and their means: all in the same order
            tensors[:] = [each.permute(0, 2, 3, 1) if each.ndim == 4 else each for each in tensors]
        return has_complex


class _Muon(Muon):
    """In float32 where bfloat16 is emulated, in which timm's would take thirty times as long."""

    def step(self, closure: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        with muon_precision(self.param_groups[0]["params"][0].device):
            return super().step(closure)  # type: ignore[no-untyped-call]


def learning_rate(config: TrainConfig, step: int, steps: int, total: int) -> float:
    """The learning rate at `step` of `total`, where an epoch has `steps`.

    cosine     linear warm-up over `warmup_epochs`, then half a cosine down to 0
    steps      as long a warm-up, then divided by ten after each third of the run
    one-cycle  up from a 25th over the first 30 % and down to almost 0, both as half a cosine, as
               in torch's OneCycleLR (Smith & Topin, arXiv 1708.07120)
    """
    if config.schedule == "one-cycle":
        top = 0.3 * total - 1
        if step <= top:
            return _half_cosine(config.learning_rate / 25, config.learning_rate, step / top)
        end = config.learning_rate / 25 / 1e4
        return _half_cosine(config.learning_rate, end, (step - top) / (total - 1 - top))
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "steps":
        return float(config.learning_rate * 0.1 ** (3 * step // total))
    return _half_cosine(config.learning_rate, 0.0, (step - warmup) / max(1, total - warmup))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
