"""Views of a batch of images: random views for training, fixed views for evaluation.

All random numbers come from one generator, so that (seed, epoch, step) determines the views and a
resumed run sees the same views. View parameters can be stored, so that the teacher encodes the same
views.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from contract import TestViews

SCALE: Final = (0.35, 1.0)  # crop area as a fraction of the image area
RATIO: Final = (3 / 4, 4 / 3)  # aspect ratio of a crop, width / height
JITTER: Final = 0.3  # brightness and contrast factors are in 1 ± JITTER
TEST_EXTENT: Final = 7 / 8  # side of an evaluation crop relative to the image, as 224 of 256 pixels


@dataclass(frozen=True)
class Views:
    """Crop of each image: centre and half extent in [−1, 1]; a negative extent flips the image.

    Crops are inside their image.
    """

    centre: Tensor  # [batch, 2] x, y
    extent: Tensor  # [batch, 2]

    @classmethod
    def sample(cls, images: int, generator: torch.Generator) -> "Views":
        """Random resized crops, flipped horizontally with probability 1/2."""
        area = _uniform(images, *SCALE, generator)
        ratio = _uniform(images, math.log(RATIO[0]), math.log(RATIO[1]), generator).exp()
        extent = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        centre = (1 - extent) * (2 * torch.rand(images, 2, generator=generator) - 1)
        mirror = torch.rand(images, generator=generator) < 0.5
        extent[:, 0] = torch.where(mirror, -extent[:, 0], extent[:, 0])
        return cls(centre, extent)

    def apply(self, images: Tensor, size: int) -> Tensor:
        """Bilinear crops [batch, 3, size, size] of `images` [batch, 3, height, width].

        A single view is applied to all images.
        """
        # Like F.affine_grid, without the matrix product that only rotations need. Computed on the
        # images' device, since the grid is larger than the view parameters.
        centre, extent = self.centre.to(images.device), self.extent.to(images.device)
        pixels = (2 * torch.arange(size, device=images.device) + 1) / size - 1
        across, down = (centre[..., None] + extent[..., None] * pixels).unbind(1)
        grid = torch.stack(
            [across[:, None].expand(-1, size, -1), down[..., None].expand(-1, -1, size)], dim=-1
        ).expand(images.shape[0], -1, -1, -1)
        return F.grid_sample(images, grid.to(images), padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Jitter:
    """Contrast and brightness factors of each image in a batch."""

    contrast: Tensor  # [batch]
    brightness: Tensor  # [batch]

    @classmethod
    def sample(cls, images: int, generator: torch.Generator) -> "Jitter":
        """Independent factors, uniform in 1 ± JITTER."""
        return cls(*(_uniform(images, 1 - JITTER, 1 + JITTER, generator) for _ in range(2)))

    def apply(self, images: Tensor) -> Tensor:
        """`images` [batch, 3, h, w] in [0, 1], each scaled by its factors."""
        contrast, brightness = (
            factor.view(-1, 1, 1, 1).to(images) for factor in (self.contrast, self.brightness)
        )
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        # ((x − mean) · contrast + mean) · brightness, with fewer passes and copies.
        shift = mean * (1 - contrast) * brightness
        return (images * (contrast * brightness)).add_(shift).clamp_(0, 1)


def sample_views(images: int, generator: torch.Generator) -> Tensor:
    """Parameters [images, 6] of one random view per image, for `apply_views`."""
    views, jitter = Views.sample(images, generator), Jitter.sample(images, generator)
    scaled = torch.stack([jitter.contrast, jitter.brightness], dim=1)
    return torch.cat([views.centre, views.extent, scaled], dim=1)


def apply_views(pixels: Tensor, view_params: Tensor) -> Tensor:
    """Views [batch, 3, size, size] in [0, 1] float32 of uint8 `pixels` of the same shape.

    `view_params` [batch, 6] are from `sample_views`. They are relative to the image size: a larger
    copy of an image gives the same view at a higher resolution.
    """
    images = pixels.float().div_(255)
    cropped = Views(view_params[:, :2], view_params[:, 2:4]).apply(images, images.shape[-1])
    return Jitter(view_params[:, 4], view_params[:, 5]).apply(cropped)


def fixed_views(images: Tensor, views: TestViews) -> Iterator[Tensor]:
    """Evaluation views of `images` [batch, 3, size, size], uint8 or in [0, 1].

    Yields one or more tensors of the same shape, in [0, 1].

    Objects look larger in a random crop than in the whole image, and a network is most accurate at
    the object size it was trained on (Touvron et al., NeurIPS 2019, arXiv 1906.06423). Evaluation
    therefore uses the centre crop, or the centre and the four corners, each also flipped
    (Krizhevsky et al., NeurIPS 2012).
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    if views == "whole":
        yield images
        return
    margin = 1 - TEST_EXTENT
    corners = [(x, y) for y in (-margin, margin) for x in (-margin, margin)]
    is_ten_crop = views == "ten-crop"
    for centre in [(0.0, 0.0), *(corners if is_ten_crop else ())]:
        for mirror in (1, -1) if is_ten_crop else (1,):
            extent = torch.tensor([[mirror * TEST_EXTENT, TEST_EXTENT]])
            yield Views(torch.tensor([centre]), extent).apply(images, images.shape[-1])


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
