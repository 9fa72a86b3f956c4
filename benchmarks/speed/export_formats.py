"""Students in each export format compared with PyTorch: float32 and int8, batches of 1 and 16.

A teacher in PyTorch is measured with each student. Networks with random weights at 224 px, on all
cores that the process may use (`taskset -c 0,1` for two). The formats alternate, and medians over
several rounds are compared.

    python -m benchmarks.speed.export_formats [--students NAME …] [--rounds 7]
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

from distill.data.cores import usable_cores
from distill.data.splits import Split
from distill.export.formats import onnx_format, openvino_format
from distill.export.onnx import image_encoder
from distill.export.quantise import quantise
from distill.models.student import build_student

TEACHER = "ViT-B-32"
STUDENTS = ("resnet18", "mobilenetv3_small_100", "tf_efficientnet_lite1", "deit_tiny_patch16_224")
SIZE, DIM = 224, 512
BATCHES = (1, 16)
Encode = Callable[[Tensor], Tensor]


def formats(name: str, photos: Split) -> dict[str, Encode]:
    """The encoder functions by format, PyTorch first."""
    torch.manual_seed(0)
    student = build_student(name, DIM, image_size=SIZE)
    student.test_views = "whole"
    model = image_encoder(student, SIZE)
    small = quantise(model, photos, SIZE)
    made = [onnx_format(model, ""), onnx_format(small, "", int8=True)]
    if importlib.util.find_spec("openvino"):
        made += [openvino_format(model), openvino_format(small, int8=True)]
    return {"PyTorch eager": student.encode, **{encoder.title: encoder.encode for encoder in made}}


def teacher_side(name: str) -> Encode:
    """A function that encodes images with an open_clip model with random weights."""
    model = open_clip.create_model(name, pretrained=None).eval()

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        return model.encode_image(images / 255)

    return encode


def measure(sides: dict[str, Encode], images: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of each format for `images`, measured in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, encode in sides.items():
            began = time.perf_counter()
            encode(images)
            if number:  # the first round allocates
                seconds[name].append(time.perf_counter() - began)
    return {name: median(spent) for name, spent in seconds.items()}


def noise_photos(folder: Path, count: int = 64) -> Split:
    """Images to calibrate int8 on."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        small.resize((SIZE, SIZE)).save(path)
    return Split("train", ("noise",), tuple(paths), torch.zeros(count, dtype=torch.long))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    print(f"{SIZE} px, {usable_cores()} cores, median of {options.rounds} rounds")
    with TemporaryDirectory() as folder:
        photos, teacher = noise_photos(Path(folder)), teacher_side(TEACHER)
        for name in options.students:
            sides = formats(name, photos) | {TEACHER: teacher}
            for batch in BATCHES:
                images = torch.randint(256, (batch, 3, SIZE, SIZE), dtype=torch.uint8)
                seconds = measure(sides, images, options.rounds)
                eager = seconds["PyTorch eager"]
                print(f"{name}, batch {batch}")
                for side, spent in seconds.items():
                    print(
                        f"  {side:20} {1000 * spent / batch:8.1f} ms an image, "
                        f"{eager / spent:5.2f} times PyTorch"
                    )


if __name__ == "__main__":
    main()
