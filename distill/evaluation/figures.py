"""What a report and a classifier say of a student beyond its accuracy: joint setting, calibration.

Nothing but the figures comes from images of unseen classes: temperature, bias and threshold are
chosen on seen ones.
"""

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from contract import Calibration, JointAccuracy
from distill.data.splits import Split
from distill.embeddings.text_bank import TextBank
from distill.evaluation.accuracy import check_features
from distill.evaluation.calibration import (
    auroc,
    cross_fitted_error,
    cross_fitted_reliability,
    expected_calibration_error,
    false_positive_rate,
    fit_temperature,
    reliability,
    threshold_at,
)
from distill.evaluation.joint import ausuc, best_point, outcomes

KNOWN_SHARE: Final = 0.95  # of seen images that the threshold for unknown ones accepts
EvaluatedSplit = Literal["seen", "unseen"]


def calibrate(
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    *,
    temperature: float,
    seen_bias: float,
) -> Calibration:
    """Temperature and threshold of a student, fitted on seen validation images, and their worth.

    `features` [images, dim] of each split need no normalisation, `temperature` is the training's.
    Without unseen images, what is measured on them is None.

    Raises:
        TextError: the bank lacks a class, or has another dimension.
        DataError: a feature is not finite.
    """
    text, targets = bank.select(splits["seen"].keys).features, splits["seen"].targets
    for split_features in features.values():
        check_features(split_features, text)
    cosines = normalize(features["seen"], dim=1) @ text.T
    fitted = fit_temperature(cosines, targets)
    known = cosines.max(dim=1).values
    before = torch.softmax(cosines.double() / temperature, dim=1)
    calibration = Calibration(
        temperature=fitted,
        seen_bias=seen_bias,
        ece_before=expected_calibration_error(before, targets),
        ece_after=cross_fitted_error(cosines, targets),
        reliability_before=reliability(before, targets),
        reliability_after=cross_fitted_reliability(cosines, targets),
        unknown_threshold=threshold_at(known, KNOWN_SHARE),
    )
    if "unseen" not in features:
        return calibration
    others = normalize(features["unseen"], dim=1) @ text.T
    unknown = others.max(dim=1).values
    by_softmax = [
        torch.softmax(scores.double() / fitted, dim=1).max(dim=1).values
        for scores in (cosines, others)
    ]
    return calibration.model_copy(
        update={
            "unknown_auroc": auroc(known, unknown),
            "unknown_auroc_softmax": auroc(*by_softmax),
            "unknown_fpr_at_95_tpr": false_positive_rate(known, unknown, KNOWN_SHARE),
        }
    )


def joint_accuracy(
    model: Literal["teacher", "student"],
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    *,
    text: str | None = None,
    bias: float = 0.0,
) -> JointAccuracy:
    """Accuracy on seen and unseen images where the classes of both splits compete.

    `features` [images, dim] of each split need no normalisation. `text` names the bank in the
    result. `bias` is taken from the cosines of seen classes.

    Raises:
        TextError: the bank lacks a class, or has another dimension.
        DataError: a feature is not finite.
    """
    seen, unseen = splits["seen"], splits["unseen"]
    classes = bank.select((*seen.keys, *unseen.keys)).features
    for split_features in features.values():
        check_features(split_features, classes)
    decided = outcomes(
        normalize(features["seen"], dim=1) @ classes.T,
        seen.targets,
        normalize(features["unseen"], dim=1) @ classes.T,
        unseen.targets + len(seen.keys),
        torch.arange(len(classes)) < len(seen.keys),
    )
    curve, point = decided.curve(), decided.at(bias)
    return JointAccuracy(
        model=model,
        text=text or bank.title,
        bias=bias,
        seen=point.seen,
        unseen=point.unseen,
        harmonic_mean=point.harmonic_mean,
        best_harmonic_mean=best_point(curve).harmonic_mean,
        ausuc=ausuc(curve),
        classes=len(classes),
    )
