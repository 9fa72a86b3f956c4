"""The student: any timm model, with a linear projection into the teacher's embedding space.

Notable:
- timm's models are made for 224 px. At 64 px and below, a ResNet's 7 × 7 stem becomes 3 × 3, and at
  32 px and below its max-pooling goes too; a ViT gets patches that leave at least 8 × 8 tokens.
  Pretrained students keep their stem: its weights are worth more.
- The weights travel as safetensors; what is needed to build the network stands in the header.
"""

import difflib
from pathlib import Path
from typing import Any, Final

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.errors import DataError, ModelError

FILE: Final = "student.safetensors"
SMALL, TINY = 64, 32  # pixels: where the stem changes
EVALUATION_BATCH: Final = 256


class Student(nn.Module):
    """uint8 or [0, 1] images [batch, 3, size, size] → features [batch, dim], not normalised."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.num_features, dim)  # type: ignore[arg-type]
        config: dict[str, Any] = backbone.default_cfg  # type: ignore[assignment]
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [batch, dim] of `images`, in the precision of the surrounding autocast."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = (images - self.mean) / self.std
        features: Tensor = self.projection(
            self.backbone(images.contiguous(memory_format=torch.channels_last))
        )
        return features

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Features [images, dim] float32 on the CPU of uint8 `pixels` [images, 3, size, size]."""
        self.eval()
        device = self.projection.weight.device
        batches = torch.split(pixels, EVALUATION_BATCH)
        return torch.cat([self(batch.to(device)).float().cpu() for batch in batches])


def build_student(name: str, dim: int, *, image_size: int, pretrained: bool = False) -> Student:
    """The timm model `name` for square images of `image_size` pixels, projecting to `dim`.

    Raises:
        ModelError: timm does not know the name, or has no weights for it at hand.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise ModelError(
            f"timm knows no student {name!r}"
            + (f": did you mean {' or '.join(near)}?" if near else "")
        )
    options: dict[str, Any] = {"num_classes": 0}
    known = timm.models.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = image_size
        if not pretrained:
            options["patch_size"] = _patch_size(name, image_size)
    try:
        backbone = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError:  # a fixed input size, but no patches to choose
        options.pop("patch_size", None)
        backbone = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # the hub and timm raise dozens of kinds
        if not pretrained:
            raise
        raise ModelError(
            f"cannot get pretrained weights for the student {name}: check the connection to the "
            f"hub, or train from scratch with pretrained = false ({_one_line(error)})"
        ) from error
    if not pretrained:
        _adapt_stem(backbone, image_size)
    return Student(backbone, dim).to(memory_format=torch.channels_last)


def _adapt_stem(backbone: nn.Module, image_size: int) -> None:
    conv = getattr(backbone, "conv1", None)
    if image_size <= SMALL and isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7):
        backbone.conv1 = nn.Conv2d(
            conv.in_channels, conv.out_channels, kernel_size=3, stride=2, padding=1, bias=False
        )
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    if image_size <= TINY and hasattr(backbone, "maxpool"):
        backbone.maxpool = nn.Identity()


def _patch_size(name: str, image_size: int) -> int:
    """The largest of timm's usual patch sizes that leaves at least 8 × 8 tokens."""
    return next(
        (size for size in (32, 16, 14, 8, 4) if image_size % size == 0 and image_size // size >= 8),
        4,
    )


def save_student(
    student: Student, path: Path, *, name: str, dim: int, image_size: int, teacher: str
) -> None:
    """Write the weights to `path`, with what is needed to build the network in the header.

    Raises:
        DataError: the file cannot be written.
    """
    header = {"student": name, "dim": str(dim), "image_size": str(image_size), "teacher": teacher}
    partial = path.with_suffix(".partial")
    weights = {key: tensor.contiguous() for key, tensor in student.state_dict().items()}
    try:
        save_file(weights, partial, metadata=header)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write the student {path} ({error}): free some space") from None
    finally:
        partial.unlink(missing_ok=True)


def load_student(path: Path) -> tuple[Student, int]:
    """The student in the file `path`, and its image size in pixels.

    Raises:
        ModelError: the file is missing, cut off or no student.
    """
    if not path.is_file():
        raise ModelError(f"there is no student {path}: train it first")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        size = int(header["image_size"])
        student = build_student(header["student"], int(header["dim"]), image_size=size)
        student.load_state_dict(load_file(path))
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError):
        raise ModelError(f"{path} is cut off or no student: train it again") from None
    return student, size


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
