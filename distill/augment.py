"""Random views of a batch of images, drawn for all images at once.

Everything random comes from one generator, so that (seed, epoch, step) decides what is seen and a
resumed run sees the same.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE: Final = (0.35, 1.0)  # share of the image's area that a crop keeps
RATIO: Final = (3 / 4, 4 / 3)  # width to height of a crop
JITTER: Final = 0.3  # brightness and contrast are scaled by up to this much either way


@dataclass(frozen=True)
class Views:
    """Which part of each image is seen: centre and half extent in [−1, 1], extent < 0 mirrors."""

    centre: Tensor  # [batch, 2] x, y
    extent: Tensor  # [batch, 2]

    @classmethod
    def draw(cls, images: int, generator: torch.Generator) -> "Views":
        """Random resized crops, every second one mirrored."""
        area = _uniform(images, *SCALE, generator)
        ratio = _uniform(images, math.log(RATIO[0]), math.log(RATIO[1]), generator).exp()
        extent = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        centre = (1 - extent) * (2 * torch.rand(images, 2, generator=generator) - 1)
        mirror = torch.rand(images, generator=generator) < 0.5
        extent[:, 0] = torch.where(mirror, -extent[:, 0], extent[:, 0])
        return cls(centre, extent)

    def apply(self, images: Tensor, size: int) -> Tensor:
        """The views [batch, 3, size, size] of `images` [batch, 3, height, width], bilinear."""
        transform = torch.zeros(len(images), 2, 3)
        transform[:, 0, 0], transform[:, 1, 1] = self.extent.unbind(1)
        transform[:, :, 2] = self.centre
        grid = F.affine_grid(transform, [len(images), 3, size, size], align_corners=False)
        return F.grid_sample(
            images, grid.to(images), padding_mode="reflection", align_corners=False
        )


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` [batch, 3, h, w] in [0, 1] with brightness and contrast of each scaled at random."""
    contrast, brightness = (
        _uniform(len(images), 1 - JITTER, 1 + JITTER, generator).view(-1, 1, 1, 1).to(images)
        for _ in range(2)
    )
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # ((x − mean) · contrast + mean) · brightness with one pass and one copy less.
    shift = mean * (1 - contrast) * brightness
    return (images * (contrast * brightness)).add_(shift).clamp_(0, 1)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random views in [0, 1] float32 of uint8 `pixels` [batch, 3, size, size], of the same size."""
    images = pixels.float().div_(255)
    views = Views.draw(len(images), generator).apply(images, images.shape[-1])
    return jitter(views, generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
