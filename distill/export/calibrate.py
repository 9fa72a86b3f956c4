"""What a classifier stores beside its encoders: temperature, bias and thresholds."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from distill.data.splits import Split
from distill.embeddings.text_bank import TextBank
from distill.evaluation.calibration import (
    auroc,
    cross_fitted_error,
    expected_calibration_error,
    false_positive_rate,
    fit_temperature,
    scores_without_own_class,
    threshold_at,
)
from distill.evaluation.joint import ausuc, best_point, outcomes
from distill.export.verify import EvaluatedSplit
from distill.runtime.manifest import Calibration

KNOWN_SHARE: Final = 0.95  # of seen images that the threshold for unknown ones lets pass


def calibrate(
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    temperature: float,
    seen_bias: float = 0.0,
) -> tuple[Calibration, dict[str, float]]:
    """The calibration of a classifier, and what it gives on the validation images, in percent.

    `features` are unit image features [images, dim] of each split, `temperature` is that of the
    training. Nothing but the figures comes from images of unseen classes.
    """
    seen = splits["seen"]
    scores = features["seen"] @ bank.select(seen.keys).features.T
    targets = seen.targets
    fitted = fit_temperature(scores, targets)
    known = scores.max(dim=1).values
    strangers = scores_without_own_class(scores, targets).max(dim=1).values
    before = torch.softmax(scores.double() / temperature, dim=1)
    calibration = Calibration(
        temperature=fitted,
        seen_bias=seen_bias,
        ece_before=expected_calibration_error(before, targets),
        ece_after=cross_fitted_error(scores, targets),
        unknown_score="cosine",
        unknown_threshold=threshold_at(known, KNOWN_SHARE),
        nearest_text_limit=nearest_text_limit(bank.features),
    )
    others = (features["unseen"] @ bank.select(seen.keys).features.T).max(dim=1).values
    figures = {
        "unknown_auroc": 100 * auroc(known, others),
        "unknown_fpr_at_95_tpr": false_positive_rate(known, others, KNOWN_SHARE),
        "unknown_auroc_expected": 100 * auroc(known, strangers),
        **_joint_figures(features, splits, bank, seen_bias),
    }
    return calibration, figures


def _joint_figures(
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    seen_bias: float,
) -> dict[str, float]:
    place = {key: row for row, key in enumerate(bank.keys)}
    unseen = set(splits["unseen"].keys)
    inputs: list[Tensor] = []
    for name in ("seen", "unseen"):
        split = splits[name]
        rows = torch.tensor([place[key] for key in split.keys])
        inputs += [features[name] @ bank.features.T, rows[split.targets]]
    is_seen = torch.tensor([key not in unseen for key in bank.keys])
    decided = outcomes(inputs[0], inputs[1], inputs[2], inputs[3], is_seen)
    curve = decided.curve()
    plain, biased, best = decided.at(0.0), decided.at(seen_bias), best_point(curve)
    return {
        "joint_seen": biased.seen,
        "joint_unseen": biased.unseen,
        "joint_harmonic_mean": biased.harmonic_mean,
        "joint_harmonic_mean_without_bias": plain.harmonic_mean,
        "joint_harmonic_mean_best_bias": best.harmonic_mean,
        "joint_ausuc": 100 * ausuc(curve),
    }


def nearest_text_limit(bank: Tensor) -> float:
    """How near the text of a new class may lie to another one's: midway from the nearest pair of
    unit text features `bank` [classes, dim] to a cosine of 1.
    """
    if len(bank) < 2:
        return 1.0
    cosines = (bank @ bank.T).fill_diagonal_(-1)
    return (1 + min(float(cosines.max()), 1.0)) / 2
