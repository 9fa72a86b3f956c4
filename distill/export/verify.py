"""Compares the outputs of exported models with PyTorch's, and measures their speed."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor
from torch.nn.functional import normalize

from distill.data.streamed_pixels import Pixels, read_in_order
from distill.embeddings.text_bank import TextBank
from distill.errors import ModelError
from distill.evaluation.figures import EvaluatedSplit
from distill.runtime.text_encoder import TextEncoder

FEATURE_TOLERANCE: Final = 1e-4
TEXT_TOLERANCE: Final = 1e-5  # of cosines
TIE: Final = 1e-5  # difference of cosines within which rounding may change the best class
BATCH: Final = 32
TIMED_SECONDS: Final = 0.5  # for each model and batch size


@dataclass(frozen=True)
class Speed:
    """Speed of a model on this machine."""

    ms: float  # for one image
    images_per_second: float  # in batches of BATCH


@dataclass(frozen=True)
class FormatRow:
    """One line of the table that an export prints. Accuracies are top-1 in percent."""

    name: str
    megabytes: float | None
    speed: Speed
    seen: float
    unseen: float | None  # None if there are no unseen classes


def onnx_features(session: ort.InferenceSession, pixels: Pixels) -> Tensor:
    """Unit features [images, dim] of uint8 `pixels` [images, 3, size, size]."""
    batches = [session.run(None, {"pixels": x.numpy()})[0] for x in read_in_order(pixels, BATCH)]
    return torch.from_numpy(np.concatenate(batches))


def check_features(
    expected: Tensor,
    exported: Tensor,
    text: Tensor,
    split: EvaluatedSplit,
    *,
    model_name: str = "the ONNX image encoder",
) -> float:
    """The largest difference between two sets of unit features [images, dim] of one split.

    `text` [classes, dim] has the unit text features that images are classified with.
    `model_name` is the model with the features `exported`, for messages.

    Raises:
        ModelError: the difference exceeds FEATURE_TOLERANCE, or the predicted class of an image
            changes although its two best classes are not tied.
    """
    expected = normalize(expected, dim=1)
    difference = float((expected - exported).abs().max())
    if not difference <= FEATURE_TOLERANCE:
        raise ModelError(
            f"{model_name} differs from PyTorch by {difference:.1e} on {split} images, "
            f"more than {FEATURE_TOLERANCE:.0e}: report it with the student's name"
        )
    scores = expected @ text.T
    before, after = scores.argmax(dim=1), (exported @ text.T).argmax(dim=1)
    rows = torch.arange(len(scores))
    changed = int(((scores[rows, before] - scores[rows, after]) > TIE).sum())
    if changed:
        raise ModelError(
            f"{model_name} predicts another class than PyTorch for {changed} of {len(scores)} "
            f"{split} images: report it with the student's name"
        )
    return difference


def check_texts(
    encoder: TextEncoder,
    groups: Mapping[str, tuple[str, ...]],
    prefixes: Mapping[str, str],
    bank: TextBank,
) -> float:
    """The smallest cosine between exported class features and those of `bank`.

    `groups` maps the key of each class to its prompts, `prefixes` to their common prefix.

    Raises:
        ModelError: the cosine is below 1 − TEXT_TOLERANCE.
    """
    rows = [encoder.encode_class(groups[key], prefixes[key]) for key in bank.keys]
    cosines = (torch.from_numpy(np.stack(rows)) * bank.features).sum(dim=1)
    worst = int(cosines.argmin())
    if not float(cosines[worst]) >= 1 - TEXT_TOLERANCE:
        raise ModelError(
            f"the exported text encoder differs from open_clip on the text of "
            f"{bank.names[worst]!r} (cosine {float(cosines[worst]):.6f}): report it with the "
            "teacher's name"
        )
    return float(cosines[worst])


def measure_speed(model: Callable[[Tensor], object], images: Pixels) -> Speed:
    """The median time of `model` for one image, and its throughput for batches of BATCH images."""
    batch = images[torch.arange(BATCH) % len(images)]
    single = _median_seconds(lambda: model(batch[:1]))
    return Speed(1000 * single, BATCH / _median_seconds(lambda: model(batch)))


def _median_seconds(call: Callable[[], object]) -> float:
    call()  # warm-up: the first call allocates
    seconds: list[float] = []
    end = time.perf_counter() + TIMED_SECONDS
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
