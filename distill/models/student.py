"""The student: any timm model, with a linear projection into the teacher's embedding space.

- timm's models are designed for 224 px. At 64 px and below, the 7 × 7 convolution of a ResNet is
  replaced by three 3 × 3 convolutions (timm's `stem_type="deep"`); at 32 px and below its
  max-pooling is also removed. The first stage then has 16 × 16 positions. A ViT with fewer than
  8 × 8 tokens gets smaller patches. Students with pretrained weights keep their stem and patches:
  the weights are worth more.
- All changes except the removed pooling use timm's arguments, so that `save_for_timm` can write a
  folder that plain timm loads. Without pooling, the weights have a key that timm rejects.
- A CNN reduces 32 × 32 pixels to one position of its last feature map, so an image of 64 px has
  2 × 2. With an output stride of 16 or 8 the last stages keep their resolution, and their
  convolutions are dilated to keep the receptive field, as in timm.
- The weights are stored as safetensors; the header describes the network and its test views.
"""

import copy
import difflib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.functional import normalize

from contract import TestViews, error_line
from distill.data.augment import TEST_EXTENT, fixed_views
from distill.data.files.atomic_file import write_atomically
from distill.data.streamed_pixels import Pixels, read_batches, read_in_order
from distill.errors import DataError, ModelError
from distill.models.safe_weights import safetensors_only

FILE: Final = "student.safetensors"
TIMM_FOLDER: Final = "timm"  # next to FILE, for plain timm
TIMM_ARGUMENTS: Final = ("img_size", "patch_size", "stem_type", "stem_width", "output_stride")
SMALL, TINY = 64, 32  # image sizes in pixels at which the stem changes
MIN_GRID: Final = 8  # of a ViT's tokens, per side
OUTPUT_STRIDE: Final = 32  # pixels per position of a CNN's last feature map, per side
EVALUATION_BATCH: Final = 256


class Student(nn.Module):
    """uint8 or [0, 1] images [batch, 3, size, size] → features [batch, dim], not normalised.

    `encode` uses the views `test_views`.
    """

    mean: Tensor
    std: Tensor
    test_views: TestViews = "whole"

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        dim: int,
        *,
        adapted: bool,
        output_stride: int,
        timm_arguments: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.timm_arguments = dict(timm_arguments)  # of timm.create_model for the backbone
        self.adapted = adapted  # whether stem and patches are adapted to small images
        self.output_stride = output_stride
        self.backbone = backbone
        self.projection = nn.Linear(features, dim)
        config: dict[str, Any] = backbone.default_cfg  # type: ignore[assignment]
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(shape), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [batch, dim] of `images`, in the precision of the surrounding autocast."""
        features: Tensor = self.projection(self.backbone_features(images))
        return features

    def backbone_features(self, images: Tensor) -> Tensor:
        """Inputs of the projection [batch, width] for `images` as in `forward`."""
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        images = (images - self.mean).div_(self.std)
        features: Tensor = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return features

    @property
    def has_no_pooling(self) -> bool:
        """Whether the max-pooling of the stem was removed, which plain timm cannot build."""
        return any(isinstance(module, _NoPooling) for module in self.backbone.modules())

    @property
    def single_view(self) -> TestViews:
        """The test view to use if several views would take too long."""
        return "whole" if self.test_views == "whole" else "centre"

    @torch.inference_mode()
    def encode(
        self, pixels: Pixels, views: TestViews | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Features [images, dim] float32 on the CPU of uint8 `pixels` [images, 3, size, size].

        Only of the images `rows`, an int64 tensor, if given. `views` overrides the student's test
        views. For several views, the mean of their unit features.
        """
        self.eval()
        device = self.projection.weight.device
        views = views or self.test_views
        if rows is None:
            batches = read_in_order(pixels, EVALUATION_BATCH)
        else:
            batches = read_batches(pixels, torch.split(rows, EVALUATION_BATCH) if len(rows) else ())
        count = len(pixels if rows is None else rows)
        features = torch.empty(count, self.projection.out_features)
        done = 0
        for batch in batches:
            features[done : done + len(batch)] = self._encode_views(batch.to(device), views)
            done += len(batch)
        return features

    @torch.inference_mode()
    def encode_backbone(self, pixels: Pixels, rows: Tensor) -> Tensor:
        """Inputs of the projection [rows, width] float32 for a single view of `pixels[rows]`."""
        self.eval()
        device = self.projection.weight.device
        features = [
            self.backbone_features(view).float().cpu()
            for batch in read_batches(pixels, torch.split(rows, EVALUATION_BATCH))
            for view in fixed_views(batch.to(device), self.single_view)
        ]
        return torch.cat(features)

    def _encode_views(self, images: Tensor, views: TestViews) -> Tensor:
        features: list[Tensor] = [self(view) for view in fixed_views(images, views)]
        if len(features) == 1:
            return features[0]
        return torch.stack([normalize(view, dim=1) for view in features]).mean(dim=0)


class MultiView(nn.Module):
    """A student for several views of a scene: the mean of the features of its views.

    uint8 or [0, 1] images [batch, views, 3, size, size] → features [batch, dim], not normalised.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        """Features [batch, dim] of `images`, in the precision of the surrounding autocast."""
        features: Tensor = self.student(images.flatten(0, 1))
        return features.view(*images.shape[:2], -1).mean(dim=1)

    def encode(self, pixels: Tensor) -> Tensor:
        """Features [scenes, dim] float32 on the CPU of `pixels` [scenes, views, 3, size, size]."""
        features = self.student.encode(pixels.flatten(0, 1))
        return features.view(*pixels.shape[:2], -1).mean(dim=1)


def build_student(
    name: str,
    dim: int,
    *,
    image_size: int,
    pretrained: bool = False,
    weights: Path | None = None,
    output_stride: int = OUTPUT_STRIDE,
) -> Student:
    """The timm model `name` for square images of `image_size` pixels, projecting to `dim`.

    It is initialised randomly, with timm's weights (`pretrained`), or from the safetensors file
    `weights` with timm's parameter names; a classifier in the file is ignored.

    Raises:
        ModelError: the name is unknown, the weights are unavailable or do not fit, or the model
            does not support this image size or output stride.
    """
    config = timm_config(name)
    if pretrained and not (config and config.has_weights):
        raise ModelError(
            f"timm has no pretrained weights for the student {name}: train it from scratch with "
            "pretrained = false, or choose another student"
        )
    if weights is not None:
        return _build_from(name, dim, image_size, output_stride, weights)
    missing = (
        f"cannot get pretrained weights for the student {name}: check the connection to the hub, "
        "or train from scratch with pretrained = false"
    )
    if pretrained:
        return _build(
            name, dim, image_size, output_stride, adapt=False, unfit=missing, pretrained=True
        )
    return _build(name, dim, image_size, output_stride, adapt=True)


def _build_from(name: str, dim: int, image_size: int, output_stride: int, path: Path) -> Student:
    """The student with the weights in the file `path`, which timm resizes to the image size."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"cannot read the weights {path} ({error_line(error)}): give a safetensors file"
        ) from None
    unfit = f"the weights {path} do not fit the student {name}"
    student = _build(
        name,
        dim,
        image_size,
        output_stride,
        adapt=False,
        unfit=unfit,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": dict(weights)},
    )
    # timm silently initialises missing weights randomly and drops unknown ones: check both.
    classifier = student.backbone.default_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    expected = student.backbone.state_dict().keys()
    wrong = sorted(
        expected
        ^ {key for key in weights if not key.startswith(tuple(f"{head}." for head in heads))}
    )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(f"{unfit}: missing or unknown: {', '.join(wrong[:3])}{more}")
    return student


def _build(
    name: str,
    dim: int,
    image_size: int,
    output_stride: int,
    *,
    adapt: bool,
    unfit: str | None = None,
    **options: object,
) -> Student:
    config = timm_config(name)
    settings: dict[str, Any] = {"num_classes": 0, **options}
    if config and config.fixed_input_size:
        settings["img_size"] = image_size
    if output_stride != OUTPUT_STRIDE:
        settings["output_stride"] = output_stride
    too_small = (
        f"the student {name} cannot take images of {image_size} px: choose another image_size "
        "or student"
    )
    # timm, torch and the hub raise many exception types.
    try:
        with safetensors_only():
            backbone = timm.create_model(name, **settings)
    except Exception as error:
        if output_stride != OUTPUT_STRIDE and isinstance(error, TypeError | AssertionError):
            raise ModelError(
                f"the student {name} cannot have an output stride of {output_stride}: leave "
                f"output_stride at {OUTPUT_STRIDE}, or choose a CNN such as resnet18"
            ) from None
        raise ModelError(f"{unfit or too_small} ({error_line(error)})") from error
    try:
        if adapt:
            if adapted := _arguments_for(backbone, image_size):
                settings |= adapted
                backbone = timm.create_model(name, **settings)
            if image_size <= TINY and hasattr(backbone, "maxpool"):
                backbone.maxpool = _NoPooling()
        features = _count_features(backbone, image_size)
    except Exception as error:
        raise ModelError(f"{too_small} ({error_line(error)})") from error
    student = Student(
        backbone,
        features,
        dim,
        adapted=adapt,
        output_stride=output_stride,
        timm_arguments={key: settings[key] for key in TIMM_ARGUMENTS if key in settings},
    )
    return student.to(memory_format=torch.channels_last)


def timm_config(name: str) -> Any:  # noqa: ANN401 - timm is untyped
    """timm's pretrained configuration of the model, or None if it has none.

    Raises:
        ModelError: timm has no such model, or none with these weights.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise ModelError(
            f"timm knows no student {name!r}"
            + (f": did you mean {' or '.join(near)}?" if near else ": see timm.list_models()")
        )
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # 'resnet18.no_such_tag'
        model = name.partition(".")[0]
        tags = [tag for tag in timm.list_pretrained(f"{model}.*") if tag.startswith(f"{model}.")]
        raise ModelError(
            f"timm knows no weights {name!r}: choose {' or '.join((model, *tags))}"
        ) from None


def _grid_side(backbone: nn.Module) -> float:
    """The shorter side of a ViT's grid of tokens; infinite for other networks."""
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    return min(grid) if isinstance(grid, tuple) else math.inf


def _patch_size(image_size: int) -> int:
    """The patch size with the fewest unused pixels; the largest of several."""
    return min(range(2, image_size // MIN_GRID + 1), key=lambda size: (image_size % size, -size))


def _arguments_for(backbone: nn.Module, image_size: int) -> dict[str, Any]:
    """timm's arguments for a stem or patches that fit small images."""
    if _grid_side(backbone) < MIN_GRID:
        return {"patch_size": _patch_size(image_size)}
    conv = getattr(backbone, "conv1", None)
    if not isinstance(backbone, ResNet) or not isinstance(conv, nn.Conv2d) or image_size > SMALL:
        return {}
    if conv.kernel_size != (7, 7):
        return {}
    return {"stem_type": "deep", "stem_width": conv.out_channels // 2}


class _NoPooling(nn.Identity):
    """Replaces a ResNet's max-pooling; its buffer makes plain timm reject the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("removed", torch.ones(1))


@torch.inference_mode()
def _count_features(backbone: nn.Module, image_size: int) -> int:
    """The number of backbone features, measured since timm's config is wrong for some models."""
    backbone.eval()
    features: Tensor = backbone(torch.zeros(1, 3, image_size, image_size))
    backbone.train()
    return features.shape[1]


def save_student(
    student: Student, path: Path, *, name: str, dim: int, image_size: int, teacher: str
) -> None:
    """Write the weights to `path`; the header describes the network.

    Raises:
        DataError: the file cannot be written.
    """
    header = {"student": name, "dim": str(dim), "image_size": str(image_size), "teacher": teacher}
    header |= {"adapted": str(student.adapted), "output_stride": str(student.output_stride)}
    header |= {"test_views": student.test_views}
    weights = {key: tensor.contiguous() for key, tensor in student.state_dict().items()}
    try:
        write_atomically(path, save(weights, metadata=header))
    except OSError as error:
        raise DataError(
            f"cannot write the student {path} ({error.strerror}): free some space"
        ) from None


def save_for_timm(student: Student, folder: Path, *, name: str, image_size: int) -> bool:
    """Write the student as a folder for `timm.create_model("local-dir:…", pretrained=True)`.

    The projection becomes timm's classifier. If plain timm cannot build the student, False is
    returned and an old folder is removed.

    Raises:
        DataError: the folder cannot be written.
    """
    dim = student.projection.out_features
    arguments = {**student.timm_arguments, "num_classes": dim}
    weights = timm_weights(student)
    try:
        if weights is None or not _has_equal_features(
            student, name, arguments, weights, image_size
        ):
            shutil.rmtree(folder, ignore_errors=True)
            return False
        config = {
            "architecture": name.partition(".")[0],
            "num_classes": dim,
            "model_args": arguments,
            "pretrained_cfg": _timm_config(student, image_size, dim),
        }
        write_atomically(folder / "model.safetensors", save(weights))
        write_atomically(folder / "config.json", json.dumps(config, indent=1) + "\n")
    except OSError as error:
        raise DataError(
            f"cannot write the student {folder} ({error.strerror}): free some space"
        ) from None
    return True


def timm_weights(student: Student) -> dict[str, Tensor] | None:
    """The weights with timm's parameter names; None if the model has no single classifier."""
    classifier = student.backbone.default_cfg.get("classifier")  # type: ignore[union-attr,operator]
    if not isinstance(classifier, str) or student.has_no_pooling:
        return None
    weights = {**student.backbone.state_dict()}
    weights[f"{classifier}.weight"] = student.projection.weight
    weights[f"{classifier}.bias"] = student.projection.bias
    return {key: value.detach().cpu().contiguous() for key, value in weights.items()}


@torch.inference_mode()
def _has_equal_features(
    student: Student,
    name: str,
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    image_size: int,
) -> bool:
    """Whether plain timm with `arguments` and `weights` gives the student's features.

    Compared on the CPU: a GPU may compute convolutions in TF32, with larger differences.
    """
    own = copy.deepcopy(student).cpu().eval()
    image = torch.rand(2, 3, image_size, image_size)
    try:
        plain = timm.create_model(name.partition(".")[0], **arguments).eval()
        plain.load_state_dict(weights)
        actual = plain((image - own.mean) / own.std)
    except (RuntimeError, TypeError, AssertionError, ValueError):  # keys or shapes differ
        return False
    expected = own(image)
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-3, atol=1e-4)


def _timm_config(student: Student, image_size: int, dim: int) -> dict[str, Any]:
    """timm's `pretrained_cfg` of the weights: classifier and preprocessing."""
    default_cfg: dict[str, Any] = student.backbone.default_cfg  # type: ignore[assignment]
    copied = ("mean", "std", "first_conv", "classifier", "fixed_input_size", "pool_size")
    return {key: default_cfg[key] for key in copied if key in default_cfg} | {
        "input_size": [3, image_size, image_size],
        "interpolation": "bicubic",
        "crop_pct": 1.0 if student.single_view == "whole" else TEST_EXTENT,
        "num_classes": dim,
    }


def load_student(path: Path) -> tuple[Student, int]:
    """Load the student in the file `path`. Returns it and its image size in pixels.

    Raises:
        ModelError: the file is missing, damaged or not a student.
    """
    if not path.is_file():
        raise ModelError(f"there is no student {path}: train it first")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        size = int(header["image_size"])
        adapted = header.get("adapted", "True") == "True"
        stride = int(header.get("output_stride", OUTPUT_STRIDE))
        student = _build(header["student"], int(header["dim"]), size, stride, adapt=adapted)
        student.load_state_dict(load_file(path))
        if (views := header.get("test_views", "whole")) not in get_args(TestViews):
            raise ValueError(views)
        student.test_views = cast("TestViews", views)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError):
        raise ModelError(f"{path} is damaged or not a student: train it again") from None
    return student, size
