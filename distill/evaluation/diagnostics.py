"""Diagnostics of text features: similarities of class texts, and the most confusable pairs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contract import (
    ClassMargin,
    ConfusablePair,
    Move,
    PulledApart,
    Release,
    TextDiagnostics,
    TextPlane,
)
from distill.embeddings.class_prompts import prompts_of
from distill.embeddings.text_bank import TextBank
from distill.errors import TextError
from distill.method import metrics
from distill.models.devices import metrics_device

SHOWN_PAIRS = 10
CPU = torch.device("cpu")


def diagnose(
    features: Tensor, names: Sequence[str], text: str, *, device: torch.device = CPU
) -> TextDiagnostics:
    """Diagnostics of text features [classes, dim], computed on `device`.

    `text` is the name of the texts in the result, such as a strategy.

    Raises:
        TextError: fewer than two classes, or features that are not finite.
    """
    if len(features) < 2:
        raise TextError("diagnostics need the texts of at least two classes")
    if not bool(features.isfinite().all()):
        raise TextError(f"the text features {text!r} have NaN or infinity: encode them again")
    unit = F.normalize(features.to(metrics_device(device)).double(), dim=-1)
    spectrum = metrics.singular_values(unit)
    return TextDiagnostics(
        text=text,
        classes=len(features),
        mean_cosine=float(metrics.mean_cosine(unit)),
        mean_nearest_cosine=float(metrics.mean_nearest_cosine(unit)),
        effective_rank=float(metrics.effective_rank(unit)),
        singular_values=tuple(spectrum.tolist()),
        confusable=tuple(
            ConfusablePair(a=names[a], b=names[b], cosine=cosine)
            for a, b, cosine in metrics.confusable_pairs(unit, SHOWN_PAIRS)
        ),
        margins=tuple(
            ClassMargin(name=name, margin=margin)
            for name, margin in zip(names, metrics.class_margins(unit).tolist(), strict=True)
        ),
    )


def pulled_apart(
    before: TextBank, after: TextBank, release: Release, count: int = SHOWN_PAIRS
) -> tuple[PulledApart, ...]:
    """The `count` pairs of classes whose cosine fell most from `before` to `after` (same keys)."""
    change = before.features @ before.features.T - after.features @ after.features.T
    upper = torch.triu_indices(len(change), len(change), offset=1)
    drops = change[upper[0], upper[1]]
    labels = {label.key: label for label in release.labels}
    pairs = []
    for index in drops.argsort(descending=True, stable=True)[:count].tolist():
        a, b = int(upper[0, index]), int(upper[1, index])
        if drops[index] <= 0:
            break
        pairs.append(
            PulledApart(
                a=after.names[a],
                b=after.names[b],
                before=float(before.features[a] @ before.features[b]),
                after=float(after.features[a] @ after.features[b]),
                text_a=" ".join(prompts_of(labels[after.keys[a]], after.strategy)),
                text_b=" ".join(prompts_of(labels[after.keys[b]], after.strategy)),
            )
        )
    return tuple(pairs)


def text_plane(before: TextBank, after: TextBank, rows: Sequence[int]) -> TextPlane:
    """The classes in `rows`, projected on the first two principal components of both banks.

    The components are those of all classes of both banks (same keys). Their signs are fixed by
    making the largest element of each positive.
    """
    features = [bank.features.double() for bank in (before, after)]
    # The prompt format shifts all texts equally; without centring, this would be the first axis.
    centred = torch.cat([texts - texts.mean(dim=0) for texts in features])
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(2, centred.shape[1], dtype=torch.float64)
    plane[: len(axes[:2])] = axes[:2]
    largest = plane.gather(1, plane.abs().argmax(dim=1, keepdim=True))
    coordinates = centred @ (plane * largest.sign()).T
    variance = values.square()
    classes = len(before.names)

    def position(row: int) -> tuple[float, float]:
        x, y = coordinates[row].tolist()
        return round(x, 5), round(y, 5)

    return TextPlane(
        before=before.strategy,
        after=after.strategy,
        explained=float(variance[:2].sum() / variance.sum().clamp_min(1e-300)),
        classes=tuple(
            Move(name=after.names[row], before=position(row), after=position(classes + row))
            for row in rows
        ),
    )


def read_embeddings(path: Path, key: str) -> tuple[Tensor, list[str]]:
    """The text features [classes, dim] float64 named `key` in an .npz file, and the class names.

    Names are read from an array of strings of the same length; without one, classes are numbered.

    Raises:
        TextError: the file or the key is missing, or the array has another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if key not in archive:
                raise TextError(f"{path} has no array {key!r}: it has {', '.join(archive.files)}")
            features = archive[key]
            if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
                raise TextError(f"{key!r} in {path} is not a [classes, dim] array of floats")
            for other in archive.files:
                try:
                    values = archive[other]
                except ValueError:  # an object array, which only pickle could read
                    continue
                if values.shape == (len(features),) and values.dtype.kind == "U":
                    return torch.from_numpy(features.astype(np.float64)), values.tolist()
    except OSError as error:
        raise TextError(f"cannot read {path} ({error.strerror or error})") from None
    except ValueError:
        raise TextError(f"{path} is not an .npz file of plain arrays") from None
    return torch.from_numpy(features.astype(np.float64)), [str(i) for i in range(len(features))]
