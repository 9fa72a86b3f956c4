"""The student and the teacher's text tower as ONNX.

Notable: torch.export takes a quarter of a minute for each, most of it Python, so the text tower,
which is the same for all students of a teacher, is kept in the cache folder.
"""

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.data.atomic_file import atomic_file
from distill.data.augment import fixed_views
from distill.errors import DataError, ModelError
from distill.models.student import Student
from distill.models.teacher import Teacher

MOST_IMAGES: Final = 65_536  # of a batch; torch wants a bound
PROBES: Final = ("a photo of a dog", "a bird with a red beak . it has long thin legs")


class ImageEncoder(nn.Module):
    """uint8 pixels [batch, 3, size, size] → unit features [batch, dim], the mean over its views."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit features [batch, dim] of `pixels`, which it normalises itself."""
        views = list(fixed_views(pixels, self.student.test_views))
        # One pass through the network, whatever the number of views: the model stays small.
        features = normalize(self.student(torch.cat(views)), dim=1)
        if len(views) == 1:
            return features
        return normalize(features.view(len(views), -1, features.shape[1]).mean(dim=0), dim=1)


class TextTower(nn.Module):
    """Token ids [batch, context] → unit features [batch, dim]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit features [batch, dim] of `tokens`."""
        return normalize(self.model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]


def image_encoder(student: Student, image_size: int) -> bytes:
    """The ONNX model of `student` for square images of `image_size` pixels.

    Raises:
        ModelError: torch cannot export a part of it.
    """
    student.eval()
    pixels = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    return _export(ImageEncoder(student), pixels, "pixels", "the student")


def text_encoder(teacher: Teacher, cache: Path | None = None) -> bytes:
    """The ONNX model of the teacher's text tower; with `cache`, a folder, made once per teacher.

    Raises:
        ModelError: torch cannot export a part of it.
        DataError: the cache cannot be written.
    """
    path = None if cache is None else cache / f"text-encoder-{teacher.fingerprint[:24]}.onnx"
    if path is not None and path.is_file():
        return path.read_bytes()
    tower = TextTower(teacher.model).eval()
    tokens = teacher.tokenizer(list(PROBES)).to(teacher.device)
    model = _export(tower, tokens, "tokens", f"the text tower of the teacher {teacher.name}")
    if path is not None:
        try:
            with atomic_file(path) as file:
                file.write(model)
        except OSError as error:
            raise DataError(
                f"cannot write the text encoder cache {path} ({error.strerror}): free some space "
                "or choose another cache folder"
            ) from None
    return model


def _export(module: nn.Module, example: Tensor, input_name: str, what: str) -> bytes:
    """`module` as an ONNX model with one input [batch, ...] and the output `features`."""
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # onnxscript tells of every constant that it cannot fold
    try:
        with warnings.catch_warnings(), torch.no_grad(), TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[input_name],
                output_names=["features"],
                external_data=False,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("torch.onnx gave no program")
            path = Path(folder, "model.onnx")
            program.save(path, external_data=False)
            return path.read_bytes()
    except Exception as error:  # torch.export and onnxscript raise dozens of kinds
        raise ModelError(
            f"cannot export {what} to ONNX ({' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        logging.disable(level)
