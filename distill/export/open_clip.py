"""Exports the student for open_clip: its network as image tower, with the teacher's text tower.

open_clip_config.json         read by `open_clip.create_model_and_transforms("local-dir:…")`
open_clip_model.safetensors   the weights of both towers
config.json                   read by `timm.create_model("local-dir:…")`
model.safetensors             the weights of the backbone, without the projection
tokenizer*, …                 only for a text tower from Hugging Face

open_clip creates a timm model by name only, without other arguments. So a network whose stem or
patch size was adapted to small images by timm arguments cannot be exported.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from torch import Tensor

from distill.errors import ModelError
from distill.models.student import OUTPUT_STRIDE, SMALL, Student, timm_weights
from distill.models.teacher import Teacher, load_teacher, model_config

TOWERS: Final[tuple[dict[str, Any], ...]] = (
    {"timm_proj": "linear", "timm_proj_bias": True},
    {"timm_proj": ""},
)
Files = Mapping[str, bytes]


def open_clip_files(
    student: Student, teacher: Teacher, *, name: str, image_size: int, temperature: float
) -> dict[str, bytes]:
    """The files of an open_clip folder, by file name.

    `name` is the timm name of the student. `temperature` becomes open_clip's `logit_scale`.

    Raises:
        ModelError: open_clip builds a different network for this name.
    """
    tower, weights = _image_tower(student, name, image_size)
    backbone = {key: _plain(value) for key, value in student.backbone.state_dict().items()}
    return {
        "open_clip_config.json": _json(_config(student, teacher, tower)),
        "open_clip_model.safetensors": save(_weights(teacher, weights, temperature)),
        "config.json": _json(_backbone_config(student, tower, image_size)),
        "model.safetensors": save(backbone),
        **_tokenizer_files(teacher),
    }


@contextmanager
def loaded(files: Files) -> Iterator[Teacher]:
    """The model that open_clip loads from `files`, in float32.

    Raises:
        ModelError: open_clip cannot load them.
    """
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        yield load_teacher(f"local-dir:{folder}", precision="float32")


def _image_tower(
    student: Student, name: str, image_size: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of an open_clip image tower with the student's features.

    Raises:
        ModelError: open_clip cannot build such a tower.
    """
    trunk = {f"trunk.{key}": value for key, value in student.backbone.state_dict().items()}
    head = {f"head.proj.{key}": value for key, value in student.projection.state_dict().items()}
    classifier = {f"trunk.{key}": value for key, value in (timm_weights(student) or {}).items()}
    pool = getattr(student.backbone, "global_pool", "avg")
    pools = ("", pool if isinstance(pool, str) else getattr(pool, "pool_type", "avg"))
    for options, pooling, weights in zip(TOWERS, pools, (trunk | head, classifier), strict=True):
        config: dict[str, Any] = {
            "timm_model_name": name.partition(".")[0],
            "timm_model_pretrained": False,
            "timm_pool": pooling,
            "image_size": image_size,
            **options,
        }
        if weights and _has_equal_features(student, config, weights):
            return config, {key: _plain(value) for key, value in weights.items()}
    raise ModelError(f"--open-clip: open_clip cannot build this {name}, {_why_not(student)}")


@torch.inference_mode()
def _has_equal_features(
    student: Student, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> bool:
    """Whether open_clip's image tower with `config` and `weights` has the student's features."""
    size = config["image_size"]
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        tower = TimmModel(
            config["timm_model_name"],
            student.projection.out_features,
            image_size=size,
            pool=config["timm_pool"],
            proj=config["timm_proj"],
            proj_bias=config.get("timm_proj_bias", False),
        ).eval()
        tower.load_state_dict(weights)
        actual = tower((image - student.mean) / student.std)
    except (RuntimeError, TypeError, AssertionError, ValueError):  # keys or shapes differ
        return False
    expected = student.eval()(image)
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-3, atol=1e-4)


def _why_not(student: Student) -> str:
    """Why open_clip cannot build the student, and how to train one that it can build."""
    arguments = student.timm_arguments
    listed = ", ".join(f"{key} = {value}" for key, value in arguments.items())
    if student.output_stride != OUTPUT_STRIDE:
        return f"which has {listed}: train it with output_stride = {OUTPUT_STRIDE}"
    if student.has_no_pooling or "stem_type" in arguments:
        return (
            "whose stem was adapted to small images: train it with pretrained = true or with "
            f"weights, at an image_size above {SMALL}, or train a student whose stem is never "
            "adapted, such as mobilenetv3_small_100"
        )
    if arguments:
        default_cfg: dict[str, Any] = student.backbone.default_cfg  # type: ignore[assignment]
        return (
            f"which has {listed}: train it at image_size = {default_cfg['input_size'][-1]}, or "
            "train a student that accepts any size, such as mobilenetv3_small_100"
        )
    return "which computes features differently: train a student like mobilenetv3_small_100"


def _config(student: Student, teacher: Teacher, tower: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_cfg": model_config(teacher) | {"vision_cfg": tower},
        "preprocess_cfg": {
            "mean": student.mean.flatten().tolist(),
            "std": student.std.flatten().tolist(),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _weights(
    teacher: Teacher, tower: Mapping[str, Tensor], temperature: float
) -> dict[str, Tensor]:
    """The teacher's weights, with those of the image `tower` and the student's temperature."""
    weights = {
        key: _plain(value)
        for key, value in teacher.model.state_dict().items()
        if not key.startswith("visual.")
    }
    weights["logit_scale"] = torch.full_like(weights["logit_scale"], math.log(1 / temperature))
    return weights | {f"visual.{key}": value for key, value in tower.items()}


def _backbone_config(student: Student, tower: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    default_cfg: dict[str, Any] = student.backbone.default_cfg  # type: ignore[assignment]
    copied = ("first_conv", "classifier", "fixed_input_size", "pool_size")
    pretrained_cfg = {key: default_cfg[key] for key in copied if key in default_cfg} | {
        "input_size": [3, image_size, image_size],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": student.mean.flatten().tolist(),
        "std": student.std.flatten().tolist(),
        "num_classes": 0,
    }
    return {
        "architecture": tower["timm_model_name"],
        "num_classes": 0,
        "pretrained_cfg": pretrained_cfg,
    }


def _tokenizer_files(teacher: Teacher) -> dict[str, bytes]:
    """The tokenizer files of a text tower from Hugging Face, which open_clip reads."""
    if not isinstance(teacher.tokenizer, HFTokenizer):
        return {}
    with TemporaryDirectory() as folder:
        teacher.tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _plain(value: Tensor) -> Tensor:
    """A copy on the CPU that shares no memory with other tensors, as safetensors requires."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
