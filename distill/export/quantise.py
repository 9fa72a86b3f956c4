"""Static int8 quantisation of an image encoder with ONNX Runtime (QDQ format).

- Weights are quantised per channel, activations per tensor, calibrated on training images. The
  ranges of weights are reduced to 7 bits, since sums of 8-bit products overflow on processors
  without VNNI.
- Relu and Clip are quantised with the layer before them. Otherwise its output is quantised first,
  and most of the 8 bits are spent on values that the activation then cuts off.
- Biases are corrected for the rounding of the weights.
- What depends on the shape of the images alone stays in float32: positions of a crop, padding.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from distill.data.files.image_file import open_image, square
from distill.data.splits import Split
from distill.errors import ModelError
from distill.export.bias_correction import correct_biases
from distill.export.verify import FormatRow
from distill.runtime.image_encoder import Pixels

IMAGES: Final = 256  # training images, to calibrate activations and to correct biases
BATCH: Final = 32
LAYERS: Final = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool")
ACTIVATIONS: Final = ("Relu", "Clip")


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Batches of images for ONNX Runtime."""

    def __init__(self, batches: list[Pixels]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def quantise(model: bytes, train: Split, image_size: int) -> bytes:
    """The image encoder `model` (ONNX) with 8-bit weights and activations.

    Raises:
        ModelError: ONNX Runtime cannot quantise it.
        UnreadableImages: a training image cannot be read.
    """
    batches = _calibration_batches(train, image_size)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends the pre-processing that is done here
    try:
        with TemporaryDirectory() as folder:
            source, prepared, target = (Path(folder, f"{x}.onnx") for x in ("a", "b", "c"))
            source.write_bytes(model)
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            before = onnx.load(prepared)
            options: dict[str, Any] = {
                "quant_format": QuantFormat.QDQ,
                "per_channel": True,
                "reduce_range": True,
                "activation_type": QuantType.QUInt8,
                "weight_type": QuantType.QInt8,
                "op_types_to_quantize": [*LAYERS, *ACTIVATIONS],
                "nodes_to_exclude": _nodes_of_shapes(before),
            }
            quantize_static(prepared, target, _Images(batches), **options)
            after = onnx.load(target)
            correct_biases(before, after, batches)
            return bytes(after.SerializeToString())
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"cannot quantise the student ({' '.join(str(error).split())[:200]}): export it "
            "without --int8"
        ) from error
    finally:
        logging.disable(level)


def _calibration_batches(train: Split, image_size: int) -> list[Pixels]:
    """Evenly spaced training images, uint8 `[batch, 3, image_size, image_size]`."""
    rows = np.linspace(0, len(train) - 1, min(len(train), IMAGES)).astype(int)
    paths = [train.paths[row] for row in rows]
    return [
        np.stack([square(open_image(path), image_size) for path in paths[start:][:BATCH]])
        for start in range(0, len(paths), BATCH)
    ]


def _nodes_of_shapes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose outputs depend on no pixel, at most on the shape of the images."""
    of_pixels = {"pixels"}
    names = []
    for node in model.graph.node:  # in topological order
        if node.op_type != "Shape" and not of_pixels.isdisjoint(node.input):
            of_pixels.update(node.output)
        else:
            names.append(node.name)
    return names


def check_drop(before: FormatRow, after: FormatRow, limit: float) -> None:
    """Check that a quantised encoder does not lose too much accuracy.

    Raises:
        ModelError: it loses over `limit` percentage points of top-1 on seen or unseen images.
    """
    drops = _drops(before, after)
    split, drop = max(drops.items(), key=lambda item: item[1])
    if drop > limit:
        raise ModelError(
            f"int8 loses {drop:.1f} points of top-1 on {split} images, more than {limit:g}: export "
            "without --int8, or allow more with --max-drop"
        )


def recommend(before: FormatRow, after: FormatRow) -> tuple[bool, str]:
    """Whether int8 is faster for one image on this machine, and a line for people about it."""
    times = before.speed.ms / after.speed.ms
    changes = ", ".join(f"{-drop:+.1f} {split}" for split, drop in _drops(before, after).items())
    change_text = f"points of top-1: {changes}"
    if f"{times:.1f}" == "1.0":
        pace = "as fast as float32 here"
    elif times > 1:
        pace = f"{times:.1f} times as fast here"
    else:
        pace = f"slower here, {times:.1f} times as fast"
    return times > 1, (
        f"int8 is {pace}{' and is used' if times > 1 else ': float32 is used'}; {change_text}"
    )


def _drops(before: FormatRow, after: FormatRow) -> dict[str, float]:
    drops = {"seen": before.seen - after.seen}
    if before.unseen is not None and after.unseen is not None:
        drops["unseen"] = before.unseen - after.unseen
    return drops
