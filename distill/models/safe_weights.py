"""Ensures that weights are read only from safetensors: unpickling can run arbitrary code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch


class PickledWeights(Exception):
    """A model's weights are a pickle."""


def _refuse(*_arguments: object, **_options: object) -> NoReturn:
    raise PickledWeights(
        "the weights are pickled, which can run arbitrary code: convert them to safetensors"
    )


@contextmanager
def safetensors_only() -> Iterator[None]:
    """Context in which loading a pickle raises PickledWeights.

    open_clip and timm fall back to pickles if they find no safetensors. Affects the whole process
    and is not thread-safe.
    """
    readers = torch.load, torch.jit.load
    torch.load = torch.jit.load = _refuse
    try:
        yield
    finally:
        torch.load, torch.jit.load = readers
