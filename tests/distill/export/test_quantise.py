"""int8 image encoders give nearly the features of float32."""

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from distill.data.splits import Split
from distill.export.onnx import image_encoder
from distill.export.quantise import quantise
from distill.export.verify import onnx_features
from distill.models.student import build_student
from distill.runtime.text_encoder import open_session

SIZE = 32


def write_photos(folder, darkest):
    """32 photos of blobs, none of which is darker than `darkest`."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(32)]
    for path in paths:
        blobs = Image.fromarray(rng.integers(darkest, 256, (5, 5, 3), dtype=np.uint8))
        blobs.resize((SIZE, SIZE)).save(path)
    return Split("train", ("blobs",), tuple(paths), torch.zeros(len(paths), dtype=torch.long))


def cosines(encoders, photos):
    """Cosines between the features of two encoders, one per photo."""
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)) for path in photos.paths]
    )
    expected, found = (onnx_features(open_session(model), pixels) for model in encoders)
    return (expected * found).sum(dim=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), darkest=0)


@pytest.fixture(scope="module")
def encoders(photos):
    """The ONNX model of a student whose ReLU6 cuts off most values, and the same in int8."""
    torch.manual_seed(0)
    student = build_student("test_resnet", 8, image_size=SIZE)
    student.test_views = "centre"
    student.backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    student.projection = nn.Linear(32, 8)
    for layer in student.backbone:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=20 / layer.weight[0].numel() ** 0.5)
    model = image_encoder(student, SIZE)
    return model, quantise(model, photos, SIZE)


def test_int8_features_are_near_those_of_float32(encoders, photos):
    assert cosines(encoders, photos).mean() > 0.97


def test_weights_that_are_all_rounded_down_do_not_shift_the_features(tmp_path):
    """On bright photos, all errors of a channel add up, unless its bias is corrected."""
    photos = write_photos(tmp_path, darkest=200)
    torch.manual_seed(0)
    student = build_student("test_resnet", 8, image_size=SIZE)
    student.test_views = "centre"
    convolution = nn.Conv2d(3, 32, 4, stride=4)
    student.backbone = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    steps = torch.randint(-20, 20, convolution.weight.shape) + 0.4
    steps[:, 0, 0, 0] = 64  # the largest weight, which sets the size of a step
    convolution.weight.data = steps / 64
    nn.init.zeros_(convolution.bias)
    student.projection = nn.Linear(32, 8)
    nn.init.zeros_(student.projection.bias)
    model = image_encoder(student, SIZE)
    assert cosines((model, quantise(model, photos, SIZE)), photos).min() > 0.999


def test_relu6_is_quantised_with_the_layer_before_it(encoders):
    """Otherwise few of the 256 values are left for what it lets through."""
    graph = onnx.load_model_from_string(encoders[1]).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    clipped = [made_by[node.input[0]] for node in graph.node if node.op_type in ("Relu", "Clip")]
    assert "DequantizeLinear" not in clipped


def test_positions_and_padding_stay_in_float32(encoders):
    """In 8 bits the crop of a view would be shifted by up to a tenth of a pixel."""
    graph = onnx.load_model_from_string(encoders[1]).graph
    of_pixels = {"pixels"}
    for node in graph.node:
        if node.op_type != "Shape" and not of_pixels.isdisjoint(node.input):
            of_pixels.update(node.output)
    quantised = {x.input[0] for x in graph.node if x.op_type == "QuantizeLinear"}
    assert quantised
    assert quantised <= of_pixels
