"""Exports the student and the teacher's text tower to ONNX.

- torch has two ONNX exporters. Tracing takes a second, but bakes in values that depend on the
  example, so the traced model is verified with other batch sizes. If tracing fails, torch.export is
  used, which takes a quarter of a minute.
- The text tower, which is the same for all students of a teacher, is kept in the cache folder.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.data.augment import fixed_views
from distill.data.files.atomic_file import atomic_file
from distill.errors import DataError, ModelError
from distill.export.verify import FEATURE_TOLERANCE
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.runtime.text_encoder import open_session

MAX_BATCH: Final = 65_536  # torch.export needs an upper bound
PROBES: Final = ("a photo of a dog", "a bird with a red beak . it has long thin legs")


class ImageEncoder(nn.Module):
    """uint8 pixels [batch, 3, size, size] → unit features [batch, dim], the mean over its views."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit features [batch, dim] of `pixels`, which it normalises itself."""
        views = list(fixed_views(pixels, self.student.test_views))
        # All views in one forward pass: the network appears only once in the exported graph.
        features = normalize(self.student(torch.cat(views)), dim=1)
        if len(views) == 1:
            return features
        return normalize(features.view(len(views), -1, features.shape[1]).mean(dim=0), dim=1)


class BakedClassifier(nn.Module):
    """uint8 pixels [batch, 3, size, size] → probabilities [batch, classes] of fixed classes."""

    text: Tensor
    biases: Tensor

    def __init__(self, student: Student, text: Tensor, biases: Tensor, temperature: float) -> None:
        """`text` [classes, dim]; `biases` [classes] are subtracted from the cosines."""
        super().__init__()
        self.encoder, self.temperature = ImageEncoder(student), temperature
        self.register_buffer("text", text)
        self.register_buffer("biases", biases)

    def forward(self, pixels: Tensor) -> Tensor:
        """softmax((cosine − bias) / temperature) of `pixels`."""
        cosines = self.encoder(pixels) @ self.text.T
        return torch.softmax((cosines - self.biases) / self.temperature, dim=1)


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
    return _export(ImageEncoder(student), example_images(image_size), "pixels", "the student")


def baked_classifier(
    student: Student, image_size: int, text: Tensor, biases: Tensor, temperature: float
) -> bytes:
    """The ONNX model of a `BakedClassifier`, with the output `probabilities`.

    Raises:
        ModelError: torch cannot export a part of it.
    """
    module = BakedClassifier(student, text, biases, temperature)
    return _export(
        module, example_images(image_size), "pixels", "the classifier", output_name="probabilities"
    )


def example_images(image_size: int) -> Tensor:
    """Two images [2, 3, image_size, image_size] uint8 to trace a network with."""
    shape, generator = (2, 3, image_size, image_size), torch.Generator().manual_seed(0)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def text_encoder(teacher: Teacher, cache: Path | None = None) -> bytes:
    """The ONNX model of the teacher's text tower; cached in the folder `cache`, if given.

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


def _export(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    title: str,
    *,
    output_name: str = "features",
) -> bytes:
    """`module` as an ONNX model with one input [batch, ...] and one output."""
    names = (input_name, output_name)
    module.eval()
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)  # onnxscript logs every constant that it cannot fold
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                model = _trace(module, example, *names)
                if _has_equal_outputs(model, module, example, input_name):
                    return model
            except Exception:  # many exception types; torch.export may succeed
                pass
            model = _torch_export(module, example, *names)
            if not _has_equal_outputs(model, module, example, input_name):
                raise RuntimeError("the outputs depend on the batch size")
            return model
    except Exception as error:  # torch.export and onnxscript raise many exception types
        raise ModelError(
            f"cannot export {title} to ONNX ({' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        logging.disable(level)


def _trace(module: nn.Module, example: Tensor, input_name: str, output_name: str) -> bytes:
    model = BytesIO()
    with _silent_stdout():
        torch.onnx.export(
            module,
            (example,),
            cast(Any, model),  # accepts a buffer if dynamo is off; missing in torch's type hints
            dynamo=False,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
        )
    return model.getvalue()


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard standard output: torch's C++ code prints graphs that it cannot trace to it."""
    sys.stdout.flush()
    stdout, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(devnull)


def _has_equal_outputs(model: bytes, module: nn.Module, example: Tensor, input_name: str) -> bool:
    """Whether `model` gives the outputs of `module` for other batch sizes."""
    session = open_session(model)
    for inputs in (example[:1], torch.cat([example, example[:1]])):
        expected = module(inputs).cpu()
        actual = torch.from_numpy(session.run(None, {input_name: inputs.cpu().numpy()})[0])
        if not torch.allclose(actual, expected, rtol=0, atol=FEATURE_TOLERANCE):
            return False
    return True


def _torch_export(module: nn.Module, example: Tensor, input_name: str, output_name: str) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=[input_name],
            output_names=[output_name],
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx returned no program")
        path = Path(folder, "model.onnx")
        program.save(path, external_data=False)
        return path.read_bytes()
