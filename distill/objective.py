"""What training minimises: the losses that have a weight, each of them named as in the config."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from contract import TrainConfig
from distill import losses


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
