"""Accuracy of image features against a text bank, and their similarity to the teacher's."""

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from contract import Accuracy, Imitation
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, TextError
from distill.evaluation.score_norm import ScoreNorm
from distill.method import metrics
from distill.models.devices import metrics_device

NEIGHBOURS: Final = 10  # k of M_neigh, at most the number of images − 1
NEAREST_TEXTS: Final = 10  # k of M_vlalign, at most the number of texts
CPU: Final = torch.device("cpu")
MAX_IMAGES: Final = 100_000  # the time grows with the square


def predict(features: Tensor, text: Tensor, norm: ScoreNorm | None = None) -> Tensor:
    """The index [images] of the class whose text has the largest cosine with each image.

    `features` [images, dim] need not be normalised, `text` [classes, dim] must be. Ties go to the
    smallest index. With `norm`, standardised cosines are compared.

    Raises:
        TextError: images and texts have different dimensions.
        DataError: a feature is not finite.
    """
    check_features(features, text)
    scores = features @ text.T if norm is None else norm.scores(features, text)
    return scores.argmax(dim=1)


def check_features(features: Tensor, text: Tensor) -> None:
    """Check that image `features` [images, dim] can be compared with `text` [texts, dim].

    Raises:
        TextError: images and texts have different dimensions.
        DataError: a feature is not finite.
    """
    if features.shape[1] != text.shape[1]:
        raise TextError(
            f"the image features have {features.shape[1]} dimensions and the texts have "
            f"{text.shape[1]}: make both with the same teacher"
        )
    if not bool(features.isfinite().all()):
        raise DataError("image features have NaN or infinity: the model is damaged or diverged")


def score(predicted: Tensor, targets: Tensor, classes: int) -> tuple[float, float]:
    """Top-1 and mean per-class accuracy in percent of the class indices `predicted` [images].

    The mean excludes classes without an image in `targets` [images].
    """
    hits = (predicted == targets).double()
    images = torch.bincount(targets, minlength=classes)
    per_class = torch.bincount(targets, weights=hits, minlength=classes) / images
    return 100 * hits.mean().item(), 100 * per_class[images > 0].mean().item()


def accuracy(  # noqa: PLR0913 - labels of the result, features, targets and texts
    model: Literal["teacher", "student"],
    split: Literal["seen", "unseen"],
    features: Tensor,
    targets: Tensor,
    keys: Sequence[str],
    bank: TextBank,
    *,
    text: str | None = None,
    norm: ScoreNorm | None = None,
) -> Accuracy:
    """Top-1 and mean per-class accuracy among the classes `keys` of the split, in percent.

    `features` [images, dim] need not be normalised; `targets` [images] index `keys`. `text` names
    the bank in the result, by default its title. `norm` is as in `predict`.

    Raises:
        TextError: the bank has no text for a class, or another dimension.
        DataError: a feature is not finite.
    """
    predicted = predict(features, bank.select(keys).features, norm)
    top1, mean_per_class = score(predicted, targets, len(keys))
    return Accuracy(
        model=model,
        text=text or bank.title,
        split=split,
        top1=top1,
        mean_per_class=mean_per_class,
        images=len(targets),
        classes=len(keys),
    )


def imitation(
    split: Literal["train", "seen", "unseen"],
    student: Tensor,
    teacher: Tensor,
    text: Tensor,
    *,
    device: torch.device = CPU,
) -> Imitation:
    """How closely the student's features match the teacher's on one split, computed on `device`.

    `student` and `teacher` [images, dim]; `text` [classes, dim] of the classes of the split. At
    most MAX_IMAGES evenly spaced images are compared.
    """
    if len(student) > MAX_IMAGES:
        part = torch.linspace(0, len(student) - 1, MAX_IMAGES, dtype=torch.float64).long()
        student, teacher = student[part], teacher[part]
    device = metrics_device(device)
    student, teacher, text = (features.to(device) for features in (student, teacher, text))
    neighbours, texts = min(NEIGHBOURS, len(student) - 1), min(NEAREST_TEXTS, len(text))
    reversed_pairs = metrics.m_vlalign(student, teacher, text, texts)
    return Imitation(
        split=split,
        images=len(student),
        m_rel=metrics.m_rel(student, teacher),
        m_neigh=metrics.m_neigh(student, teacher, neighbours) if neighbours else None,
        m_neigh_k=neighbours,
        m_vlalign=reversed_pairs,
        m_vlalign_normalised=reversed_pairs / max(1, texts * (texts - 1) // 2),
        m_vlalign_k=texts,
        feature_mse=metrics.feature_mse(student, teacher),
        mean_angle=metrics.mean_angle(student, teacher),
    )
