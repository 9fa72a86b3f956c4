"""Figures of a report and a classifier besides accuracy: joint accuracy and calibration.

Images of unseen classes are used only to measure: temperature, bias and threshold are chosen on
images of seen classes.
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
    cross_fitted_error,
    cross_fitted_reliability,
    expected_calibration_error,
    false_positive_rate,
    fit_temperature,
    reliability,
    threshold_at,
)
from distill.evaluation.joint import ausuc, best_point, outcomes
from distill.evaluation.score_norm import ScoreNorm
from distill.evaluation.unknown import KNOWN_SHARE, Scorer, compare_scores, rejected

MIN_SHARE: Final = 1e-6  # smallest fraction of seen images that pass: at least one image
EvaluatedSplit = Literal["seen", "unseen"]


def calibrate(
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    *,
    temperature: float,
    seen_bias: float,
    norm: ScoreNorm,
    look_alikes: Tensor | None = None,
) -> Calibration:
    """Fit temperature and threshold of a student on seen validation images, and evaluate them.

    `features` [images, dim] of each split need not be normalised. `temperature` is that of the
    training, `norm` has the moments of the training images, and `look_alikes` [look-alikes, dim]
    are unit text features, if there are any. Without unseen images, the figures on them are None.

    Raises:
        TextError: the bank has no text for a class, or another dimension.
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
    return calibration.model_copy(
        update=unknown_figures(features, Scorer(text, fitted, norm, look_alikes))
    )


def unknown_figures(features: Mapping[EvaluatedSplit, Tensor], scorer: Scorer) -> dict[str, object]:
    """The fields of `Calibration` that evaluate scores with the unseen images as unknown images."""
    seen, unseen = features["seen"], features["unseen"]
    scores = compare_scores(scorer, seen, unseen)
    fields: dict[str, object] = {
        "unknown_auroc": scores[0].auroc,
        "unknown_fpr_at_95_tpr": scores[0].fpr_at_95_tpr,
        "unknown_scores": scores,
    }
    if scorer.look_alikes is None:
        return fields
    by_look_alikes = rejected(seen, scorer.text, scorer.look_alikes)
    known, unknown = (scorer.scores(images)["cosine"] for images in (seen, unseen))
    accepted = max(1 - by_look_alikes / 100, MIN_SHARE)
    return fields | {
        "look_alikes_reject_seen": by_look_alikes,
        "look_alikes_reject_unseen": rejected(unseen, scorer.text, scorer.look_alikes),
        "threshold_rejects_unseen": 100 - false_positive_rate(known, unknown, accepted),
    }


def joint_accuracy(
    model: Literal["teacher", "student"],
    features: Mapping[EvaluatedSplit, Tensor],
    splits: Mapping[EvaluatedSplit, Split],
    bank: TextBank,
    *,
    text: str | None = None,
    bias: float = 0.0,
) -> JointAccuracy:
    """Accuracy on seen and unseen images when the classes of both splits compete.

    `features` [images, dim] of each split need not be normalised. `text` names the bank in the
    result. `bias` is subtracted from the cosines of seen classes.

    Raises:
        TextError: the bank has no text for a class, or another dimension.
        DataError: a feature is not finite.
    """
    seen, unseen = splits["seen"], splits["unseen"]
    classes = bank.select((*seen.keys, *unseen.keys)).features
    for split_features in features.values():
        check_features(split_features, classes)
    results = outcomes(
        normalize(features["seen"], dim=1) @ classes.T,
        seen.targets,
        normalize(features["unseen"], dim=1) @ classes.T,
        unseen.targets + len(seen.keys),
        torch.arange(len(classes)) < len(seen.keys),
    )
    curve, point = results.curve(), results.at(bias)
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
