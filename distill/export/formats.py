"""Formats of the image encoder that an export can write, each with a function that runs it.

onnx           image_encoder.onnx                        always written; `distill.runtime` uses it
openvino       image_encoder_openvino.xml and .bin       for OpenVINO
torch-export   image_encoder.pt2                         for `torch.export.load`
int8           quantised ONNX and, if chosen, OpenVINO
"""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from contract import error_line
from distill.data.streamed_pixels import Pixels, read_in_order
from distill.errors import ModelError
from distill.export import Format
from distill.export.onnx import MAX_BATCH, ImageEncoder, example_images
from distill.export.verify import BATCH, onnx_features
from distill.models.student import Student
from distill.runtime.text_encoder import open_session

OPENVINO_STEM: Final = "image_encoder_openvino"
TORCH_EXPORT_FILE: Final = "image_encoder.pt2"


@dataclass(frozen=True)
class EncoderFormat:
    """The student in one format. `encode` maps uint8 pixels to unit features [images, dim]."""

    title: str
    files: Mapping[str, bytes]
    encode: Callable[[Pixels], Tensor]
    int8: bool = False

    @property
    def size(self) -> int:
        """Size of its files in bytes."""
        return sum(map(len, self.files.values()))


def check_formats(formats: Collection[Format]) -> None:
    """Check that the packages of `formats` are installed.

    Raises:
        ModelError: OpenVINO is not installed.
    """
    if Format.OPENVINO not in formats:
        return
    try:
        import openvino  # noqa: F401
    except ImportError:
        raise ModelError(
            "--format openvino needs the package openvino: install enrich-distill[openvino]"
        ) from None


def onnx_format(model: bytes, file: str, *, int8: bool = False) -> EncoderFormat:
    """The ONNX image encoder `model`, run by ONNX Runtime."""
    encode = partial(onnx_features, open_session(model))
    return EncoderFormat(_title("ONNX Runtime", int8), {file: model}, encode, int8)


def openvino_format(model: bytes, *, int8: bool = False) -> EncoderFormat:
    """The ONNX image encoder `model`, converted for OpenVINO; computes in float32 unless int8.

    Raises:
        ModelError: OpenVINO cannot convert it.
    """
    import openvino

    stem = f"{OPENVINO_STEM}.int8" if int8 else OPENVINO_STEM
    core = _openvino_core()
    try:
        with TemporaryDirectory() as folder:
            source, target = Path(folder, "model.onnx"), Path(folder, f"{stem}.xml")
            source.write_bytes(model)
            openvino.save_model(core.read_model(source), target, compress_to_fp16=False)
            files = {path.name: path.read_bytes() for path in Path(folder).glob(f"{stem}.*")}
            # OpenVINO's default is bfloat16 on some processors.
            settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            compiled = core.compile_model(core.read_model(target), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(
            f"cannot convert the student for OpenVINO ({error_line(error)}): "
            "export it without --format openvino"
        ) from error
    return EncoderFormat(
        _title("OpenVINO", int8), files, partial(_openvino_features, compiled), int8
    )


@cache
def _openvino_core() -> Any:  # noqa: ANN401 - untyped
    """The only OpenVINO core of this process.

    Each core restores the previous signal stack when it ends. With several cores, one may restore a
    stack that another has unmapped, and the next signal crashes the process or corrupts memory.
    """
    import openvino  # of the extra `openvino`

    return openvino.Core()


def _openvino_features(compiled: Any, pixels: Pixels) -> Tensor:  # noqa: ANN401 - untyped
    batches = [
        torch.from_numpy(compiled(x.numpy())[0].copy()) for x in read_in_order(pixels, BATCH)
    ]
    return torch.cat(batches)


def torch_export_format(student: Student, image_size: int) -> EncoderFormat:
    """The student as a `torch.export` program with a dynamic batch dimension.

    Raises:
        ModelError: torch cannot export a part of it.
    """
    content = BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                ImageEncoder(student).eval(),
                (example_images(image_size),),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            )
            torch.export.save(program, content)
            content.seek(0)
            module = torch.export.load(content).module()
    except Exception as error:  # torch.export raises many exception types
        raise ModelError(
            f"cannot export the student with torch.export ({error_line(error)}): "
            "export it without --format torch-export"
        ) from error
    return EncoderFormat(
        "torch.export", {TORCH_EXPORT_FILE: content.getvalue()}, partial(_torch_features, module)
    )


@torch.inference_mode()
def _torch_features(module: torch.nn.Module, pixels: Pixels) -> Tensor:
    return torch.cat([module(batch) for batch in read_in_order(pixels, BATCH)])


def _title(runtime: str, int8: bool) -> str:
    return f"{runtime}, int8" if int8 else runtime
