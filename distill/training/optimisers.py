"""Creates the optimiser of a training run."""

import torch
from timm.optim import Muon, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn

from contract import TrainConfig
from distill.models.devices import student_dtype
from distill.training.muon import Float32Muon


def make_optimiser(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all parameters of `model`; 1-d parameters have no weight decay.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the update
    of each matrix, also of convolutions; 1-d parameters use AdamW. Its learning rate is scaled so
    that updates are as large as AdamW's (arXiv 2502.16982).
    """
    groups = param_groups_weight_decay(model, config.weight_decay)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, fused=True)
    if config.optimiser == "muon":
        device = next(model.parameters()).device
        in_float32 = student_dtype(device, config.precision) is torch.float32
        muon = Float32Muon if config.cpu_kernels and in_float32 else Muon
        return muon(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)  # 5 times faster
