"""Exports a finished run as a classifier folder, which `distill.runtime` uses without torch."""

from enum import StrEnum


class Format(StrEnum):
    """A format of the image encoder. Defined here so that the command line imports no torch."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH_EXPORT = "torch-export"
