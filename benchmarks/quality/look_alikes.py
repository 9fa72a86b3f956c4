"""Gain of look-alikes for the detection of unknown photos, with a teacher on real photos.

Scores of the teacher among the 120 seen classes must separate photos of these classes from photos
of 80 other classes. look_alikes.txt has about three look-alikes of each seen class, written by hand
from the names of the seen classes, as a language model would do. No unseen class is among them.

    python -m benchmarks.quality.look_alikes
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from distill.data.releases import release_from_pairs
from distill.data.splits import scan_splits
from distill.embeddings.image_features import image_features
from distill.embeddings.look_alikes import prompt_of, read_look_alikes
from distill.embeddings.text_bank import build_text_bank
from distill.evaluation.figures import calibrate
from distill.evaluation.score_norm import ScoreNorm
from distill.models.teacher import load_teacher

NAMES = Path(__file__).with_name("look_alikes.txt")
EVERY = 5  # training images from which the moments of normalised scores are taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "bench-out" / "cache")
    options = parser.parse_args()
    skip_without_photos("look_alikes")
    release = release_from_pairs(DATA / "label2text.txt", DATA / "chatgpt.txt")
    labels = {label.key: label.name for label in release.labels}
    teacher = load_teacher(TEACHER)
    splits = scan_splits(DATA, labels, cache=options.cache)
    train = splits["train"]
    few = replace(train, paths=train.paths[::EVERY], targets=train.targets[::EVERY])
    norm = ScoreNorm.of(image_features(teacher, few, cache=options.cache))
    features = {
        "seen": image_features(teacher, splits["seen"], cache=options.cache),
        "unseen": image_features(teacher, splits["unseen"], cache=options.cache),
    }
    names = read_look_alikes(NAMES, labels.values())
    look_alikes = teacher.encode_text([prompt_of(name) for name in names])
    table = Table("texts", "score", "AUROC", "FPR at 95 % TPR", title=f"{len(names)} look-alikes")
    for strategy in ("name", "name+description"):
        bank = build_text_bank(teacher, release, strategy)
        calibration = calibrate(
            features,
            {"seen": splits["seen"], "unseen": splits["unseen"]},
            bank,
            temperature=0.07,
            seen_bias=0.0,
            norm=norm,
            look_alikes=look_alikes,
        )
        for row in calibration.unknown_scores:
            table.add_row(strategy, row.score, f"{row.auroc:.3f}", f"{row.fpr_at_95_tpr:.1f}")
        table.add_section()
        Console().print(
            f"{strategy}: look-alikes reject {calibration.look_alikes_reject_seen:.1f} % of seen "
            f"and {calibration.look_alikes_reject_unseen:.1f} % of unseen photos; a threshold "
            f"that rejects as many seen ones rejects {calibration.threshold_rejects_unseen:.1f} % "
            "of unseen photos"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
