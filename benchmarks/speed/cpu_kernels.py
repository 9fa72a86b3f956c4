"""Gain of each replacement of a torch function in training on this CPU (`cpu_kernels = true`).

Each row is a training step of the affected part, with torch's function and with the replacement.
The two alternate, and medians of the CPU time of this process on one thread are printed, which
other processes affect little. Replacements for bfloat16 are timed in bfloat16, which is not
meaningful on a processor that emulates it.

    python -m benchmarks.speed.cpu_kernels [--rounds 15]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from statistics import median
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from contract import TrainConfig
from distill.models import cpu_kernels
from distill.models.devices import bfloat16_is_fast
from distill.models.precision import training_precision
from distill.models.student import build_student
from distill.training.optimisers import make_optimiser

BATCH, SIZE, DIM = 32, 64, 512
CPU = torch.device("cpu")


def forward_and_backward(
    network: nn.Module, images: Tensor, overrides: Mapping[Any, Callable[..., Tensor]] | None
) -> Callable[[], None]:
    """A training step without the optimiser, with some of torch's functions replaced."""
    bfloat16 = bfloat16_is_fast(CPU)

    def step() -> None:
        context = cpu_kernels.FunctionOverrides(overrides) if overrides else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), context:
            output = network(images)
        output.float().square().mean().backward()
        for parameter in network.parameters():
            parameter.grad = None

    return step


def muon_step(*, replaced: bool) -> Callable[[], None]:
    """A step of Muon over the weights of a ResNet."""
    network = build_student("resnet18", DIM, image_size=SIZE)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    config = TrainConfig(data="", teacher="", optimiser="muon", cpu_kernels=replaced)
    return make_optimiser(config, network).step


def grouped_conv2d(*args: Any) -> Tensor:  # noqa: ANN401 - as torch's own
    """The replacement for grouped convolutions, torch's function for others."""
    has_groups = len(args) > 6 and args[6] > 1
    return (cpu_kernels.conv2d_override if has_groups else functional.conv2d)(*args)


def whole_step(name: str, size: int, *, replaced: bool) -> Callable[[], None]:
    """Forward and backward pass of a student, with all replacements or none."""
    student = build_student(name, DIM, image_size=size).train()
    images = torch.rand(BATCH, 3, size, size)

    def step() -> None:
        with training_precision(CPU, cpu_kernels=replaced):
            output = student(images)
        output.float().square().mean().backward()
        for parameter in student.parameters():
            parameter.grad = None

    return step


def sides() -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """The compared functions by name: torch's and the replacement."""
    stage = timm.create_model("resnet18").layer4.to(memory_format=torch.channels_last)
    maps = torch.rand(BATCH, 256, 4, 4).contiguous(memory_format=torch.channels_last)
    mobile = build_student("mobilenetv3_small_100", DIM, image_size=SIZE).train()
    vit = build_student("vit_tiny_patch16_224", DIM, image_size=SIZE).train()
    images = torch.rand(BATCH, 3, SIZE, SIZE)
    convolution = {functional.conv2d: cpu_kernels.conv2d_override}
    return {
        "convolution, last stage of resnet18": (
            forward_and_backward(stage, maps, None),
            forward_and_backward(stage, maps, convolution),
        ),
        "grouped convolution in float32 (bfloat16), mobilenetv3": (
            forward_and_backward(mobile, images, None),
            forward_and_backward(mobile, images, {functional.conv2d: grouped_conv2d}),
        ),
        "attention (bfloat16), vit_tiny": (
            forward_and_backward(vit, images, None),
            forward_and_backward(
                vit, images, {functional.scaled_dot_product_attention: cpu_kernels.attention}
            ),
        ),
        "step of Muon, resnet18": (
            muon_step(replaced=False),
            muon_step(replaced=True),
        ),
        "all of them, forward and backward of resnet18": (
            whole_step("resnet18", SIZE, replaced=False),
            whole_step("resnet18", SIZE, replaced=True),
        ),
    }


def seconds(step: Callable[[], None]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    step()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    precision = "bfloat16" if bfloat16_is_fast(CPU) else "float32"
    table = Table(
        "", "torch, ms", "replaced, ms", "time saved", title=f"{precision}, batch {BATCH}, 1 thread"
    )
    for name, (plain, replaced) in sides().items():
        if options.only not in name:
            continue
        plain(), replaced()
        rounds = [(seconds(plain), seconds(replaced)) for _ in range(options.rounds)]
        ours, theirs = median(r for _, r in rounds), median(p for p, _ in rounds)
        saved = median(1 - r / p for p, r in rounds)
        table.add_row(name, f"{1e3 * theirs:.1f}", f"{1e3 * ours:.1f}", f"{100 * saved:.0f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
