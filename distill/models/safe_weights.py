"""Weights come as safetensors or not at all: a pickle can run any code when it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch


class PickledWeights(Exception):
    """A model's weights are a pickle."""


def _refuse(*_arguments: object, **_options: object) -> NoReturn:
    raise PickledWeights("the weights are pickled, which can run any code: convert to safetensors")


@contextmanager
def safetensors_only() -> Iterator[None]:
    """Let no library read a pickle meanwhile: open_clip and timm take one where they find no other.

    For the whole process: not for two threads at once.
    """
    readers = torch.load, torch.jit.load
    torch.load = torch.jit.load = _refuse
    try:
        yield
    finally:
        torch.load, torch.jit.load = readers
