"""Biases of a quantised network, corrected for the rounding of its weights.

Rounding moves the weights of an output channel by amounts whose sum is rarely zero. This moves the
mean of the channel, and with it the input of all later layers. The correction subtracts the move
from the bias: section 4.2 of Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", arXiv 1906.04721. The mean inputs of a layer are measured on images.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.helper import make_empty_tensor_value_info, make_node
from onnx.numpy_helper import from_array, to_array

from distill.runtime.image_encoder import Pixels
from distill.runtime.text_encoder import open_session

CORRECTED: Final = ("Conv", "Gemm")

Array = NDArray[np.float32]


def correct_biases(
    model: onnx.ModelProto, quantised: onnx.ModelProto, batches: Iterable[Pixels]
) -> None:
    """Change the biases of `quantised` (QDQ, weights per channel) for the rounding of its weights.

    `model` is the network before the quantisation; `batches` of uint8 pixels
    `[batch, 3, size, size]` are its input. Layers without a bias stay as they are.
    """
    weights = {each.name: each for each in model.graph.initializer}
    values = {each.name: each for each in quantised.graph.initializer}
    sources = {x.output[0]: x for x in quantised.graph.node if x.op_type == "DequantizeLinear"}
    layers = {node.name: node for node in quantised.graph.node}
    means = _mean_inputs(model, batches)
    for node in model.graph.node:
        if not _has_bias(node) or node.name not in layers:
            continue
        rounded, bias = (sources.get(name) for name in layers[node.name].input[1:3])
        if rounded is None or bias is None or node.input[1] not in weights:
            continue
        error = _dequantised(rounded, values) - to_array(weights[node.input[1]])
        steps = _mean_change(error, means[node.input[0]]) / to_array(values[bias.input[1]])
        stored = values[bias.input[0]]
        stored.CopyFrom(from_array(to_array(stored) - np.rint(steps).astype(np.int32), stored.name))


def _has_bias(node: onnx.NodeProto) -> bool:
    """Whether it is a layer with weights `[out, in, ...]` and a bias."""
    transposed = node.op_type == "Conv" or any(x.name == "transB" and x.i for x in node.attribute)
    return node.op_type in CORRECTED and len(node.input) > 2 and transposed


def _mean_inputs(model: onnx.ModelProto, batches: Iterable[Pixels]) -> Mapping[str, Array]:
    """Means over images and positions `[channels]` of what the layers get, by its name."""
    layers = {node.input[0]: node for node in model.graph.node if _has_bias(node)}
    measured = onnx.ModelProto()
    measured.CopyFrom(model)
    for name, node in layers.items():
        mean = "GlobalAveragePool" if node.op_type == "Conv" else "Identity"
        measured.graph.node.append(make_node(mean, [name], [f"{name}:mean"]))
        measured.graph.output.append(make_empty_tensor_value_info(f"{name}:mean"))
    session = open_session(measured.SerializeToString())
    outputs = [f"{name}:mean" for name in layers]
    found = [session.run(outputs, {"pixels": pixels}) for pixels in batches]
    return {
        name: np.concatenate([x.reshape(*x.shape[:2]) for x in each]).mean(axis=0)
        for name, each in zip(layers, zip(*found, strict=True), strict=True)
    }


def _dequantised(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> Array:
    """The rounded weights `[out, in, ...]` that a DequantizeLinear node of a layer gives."""
    weights, scales = (to_array(values[name]).astype(np.float32) for name in node.input[:2])
    dequantised: Array = weights * scales.reshape(-1, *[1] * (weights.ndim - 1))
    return dequantised


def _mean_change(error: Array, inputs: Array) -> Array:
    """How far errors `[out, in / groups, ...]` of weights move the mean outputs, `[out]`."""
    per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = len(inputs) // per_input.shape[1]
    of_output = inputs.reshape(groups, -1).repeat(len(error) // groups, axis=0)
    change: Array = (per_input * of_output).sum(axis=1)
    return change
