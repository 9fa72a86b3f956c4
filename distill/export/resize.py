"""Adds the resizing of photos to an ONNX image encoder, for programs without Pillow.

ONNX's cubic Resize with antialiasing is Pillow's bicubic filter; the pixels of ONNX Runtime differ
from Pillow's by at most 1 of 255. A photo of the encoder's own size is unchanged.
"""

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

INPUT: Final = "pixels"
RESIZED: Final = "resized/pixels"
PILLOW_CUBIC: Final = -0.5  # the coefficient of Pillow's cubic filter


def with_resize(model: bytes, image_size: int) -> bytes:
    """The image encoder `model` (ONNX) for uint8 photos [batch, 3, height, width] of any size.

    The shorter side is resized to `image_size` and the centre square cropped, as in
    `distill.data.files.image_file.square`.
    """
    encoder = onnx.load_from_string(model)
    for node in encoder.graph.node:
        node.input[:] = [RESIZED if name == INPUT else name for name in node.input]
    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [*_nodes(), *encoder.graph.node],
        encoder.graph.name,
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
        encoder.graph.output,
        [*_constants(image_size), *encoder.graph.initializer],
    )
    resizing = helper.make_model(
        graph, opset_imports=encoder.opset_import, ir_version=encoder.ir_version
    )
    onnx.checker.check_model(resizing)
    content: bytes = resizing.SerializeToString()
    return content


def _nodes() -> list[onnx.NodeProto]:
    """The nodes from INPUT to RESIZED; intermediate names have the prefix `resize/`."""
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Shape", [INPUT], "batch_and_channels", {"end": 2}),
        ("Shape", [INPUT], "sides", {"start": 2}),
        ("ReduceMin", ["sides"], "shorter", {}),
        ("Mul", ["sides", "size"], "scaled", {}),
        ("Div", ["scaled", "shorter"], "target", {}),  # integer division rounds down
        ("Concat", ["batch_and_channels", "target"], "sizes", {"axis": 0}),
        (
            "Resize",
            [INPUT, "", "", "sizes"],
            "photo",
            {
                "mode": "cubic",
                "antialias": 1,
                "cubic_coeff_a": PILLOW_CUBIC,
                "exclude_outside": 1,  # renormalise at the border, as Pillow does
            },
        ),
        ("Sub", ["target", "size"], "margin", {}),
        ("Cast", ["margin"], "margin_float", {"to": TensorProto.FLOAT}),
        ("Mul", ["margin_float", "half"], "middle", {}),
        ("Round", ["middle"], "rounded", {}),  # half to even, as in Python
        ("Cast", ["rounded"], "start", {"to": TensorProto.INT64}),
        ("Add", ["start", "size"], "end", {}),
        ("Slice", ["photo", "start", "end", "axes"], RESIZED, {}),
    ]
    return [
        helper.make_node(kind, [_name(x) for x in inputs], [_name(output)], **attributes)
        for kind, inputs, output, attributes in steps
    ]


def _name(value: str) -> str:
    return value if value in ("", INPUT, RESIZED) else f"resize/{value}"


def _constants(image_size: int) -> list[onnx.TensorProto]:
    values: dict[str, NDArray[Any]] = {
        "size": np.array([image_size]),
        "half": np.array([0.5], np.float32),
        "axes": np.array([2, 3]),
    }
    return [onnx.numpy_helper.from_array(value, _name(key)) for key, value in values.items()]
