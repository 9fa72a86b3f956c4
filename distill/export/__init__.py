"""From a finished run to a classifier folder, which `distill.runtime` uses without torch."""

from enum import StrEnum


class Format(StrEnum):
    """A format of the image encoder. It is here, since commands start without torch."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"
