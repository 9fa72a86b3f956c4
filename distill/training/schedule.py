"""Learning rates as functions of the config and the step."""

import math

from contract import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int, total: int) -> float:
    """The learning rate at `step` of `total` steps; an epoch has `steps` steps.

    cosine     linear warm-up over `warmup_epochs`, then cosine annealing to 0
    steps      the same warm-up, then divided by ten after each third of the run
    one-cycle  cosine annealing up from 1/25 over the first 30 %, then down to almost 0, as in
               torch's OneCycleLR (Smith & Topin, arXiv 1708.07120)
    """
    if config.schedule == "one-cycle":
        peak = 0.3 * total - 1
        if step <= peak:
            return _half_cosine(config.learning_rate / 25, config.learning_rate, step / peak)
        end = config.learning_rate / 25 / 1e4
        return _half_cosine(config.learning_rate, end, (step - peak) / (total - 1 - peak))
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "steps":
        return float(config.learning_rate * 0.1 ** (3 * step // total))
    return _half_cosine(config.learning_rate, 0.0, (step - warmup) / max(1, total - warmup))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
