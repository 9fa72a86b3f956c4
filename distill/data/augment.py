"""Views of a batch of images: random ones to train on, fixed ones to test on.

Everything random comes from one generator, so that (seed, epoch, step) decides what is seen and a
resumed run sees the same. What was drawn can also be kept, so that the teacher sees it too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from contract import TestViews

SCALE: Final = (0.35, 1.0)  # share of the image's area that a crop keeps
RATIO: Final = (3 / 4, 4 / 3)  # width to height of a crop
JITTER: Final = 0.3  # brightness and contrast are scaled by up to this much either way
TEST_EXTENT: Final = 7 / 8  # side of a crop to test on, as 224 pixels of 256


@dataclass(frozen=True)
class Views:
    """Which part of each image is seen: centre and half extent in [−1, 1], extent < 0 mirrors.

    No part reaches beyond its image.
    """

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
        """The views [batch, 3, size, size] of `images` [batch, 3, height, width], bilinear.

        A single view is that of all images.
        """
        # What F.affine_grid gives, without its product of matrices: there is nothing to rotate.
        pixels = (2 * torch.arange(size) + 1) / size - 1
        across, down = (self.centre[..., None] + self.extent[..., None] * pixels).unbind(1)
        grid = torch.stack(
            [across[:, None].expand(-1, size, -1), down[..., None].expand(-1, -1, size)], dim=-1
        ).expand(images.shape[0], -1, -1, -1)
        return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Jitter:
    """By how much the contrast and the brightness of each image are scaled."""

    contrast: Tensor  # [batch]
    brightness: Tensor  # [batch]

    @classmethod
    def draw(cls, images: int, generator: torch.Generator) -> "Jitter":
        """Each at random."""
        return cls(*(_uniform(images, 1 - JITTER, 1 + JITTER, generator) for _ in range(2)))

    def apply(self, images: Tensor) -> Tensor:
        """`images` [batch, 3, h, w] in [0, 1] with each image scaled as a whole."""
        contrast, brightness = (
            each.view(-1, 1, 1, 1).to(images) for each in (self.contrast, self.brightness)
        )
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        # ((x − mean) · contrast + mean) · brightness with one pass and one copy less.
        shift = mean * (1 - contrast) * brightness
        return (images * (contrast * brightness)).add_(shift).clamp_(0, 1)


def draw(images: int, generator: torch.Generator) -> Tensor:
    """All that is random about a view of each image, as numbers that can be kept: [images, 6]."""
    views, jitter = Views.draw(images, generator), Jitter.draw(images, generator)
    scaled = torch.stack([jitter.contrast, jitter.brightness], dim=1)
    return torch.cat([views.centre, views.extent, scaled], dim=1)


def see(pixels: Tensor, drawn: Tensor) -> Tensor:
    """The views `drawn` [batch, 6], in [0, 1] float32, of uint8 `pixels` [batch, 3, size, size].

    What was drawn fits every size: a larger copy of an image gives the same view, with more detail.
    """
    images = pixels.float().div_(255)
    seen = Views(drawn[:, :2], drawn[:, 2:4]).apply(images, images.shape[-1])
    return Jitter(drawn[:, 4], drawn[:, 5]).apply(seen)


def fixed_views(images: Tensor, views: TestViews) -> Iterator[Tensor]:
    """What is seen in a test of `images` [batch, 3, size, size], uint8 or in [0, 1]: one or more
    tensors of the same shape, in [0, 1].

    In a random crop things look larger than in the whole image, and a network is most accurate at
    the size that it was trained at (Touvron et al., NeurIPS 2019, arXiv 1906.06423). So a test
    takes the centre, or the centre and the four corners, each as it is and mirrored (Krizhevsky
    et al., NeurIPS 2012).
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    if views == "whole":
        yield images
        return
    margin = 1 - TEST_EXTENT
    corners = [(x, y) for y in (-margin, margin) for x in (-margin, margin)]
    ten = views == "ten-crop"
    for centre in [(0.0, 0.0), *(corners if ten else ())]:
        for mirror in (1, -1) if ten else (1,):
            one = Views(torch.tensor([centre]), torch.tensor([[mirror * TEST_EXTENT, TEST_EXTENT]]))
            yield one.apply(images, images.shape[-1])


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random views in [0, 1] float32 of uint8 `pixels` [batch, 3, size, size], of the same size."""
    return see(pixels, draw(len(pixels), generator))


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
