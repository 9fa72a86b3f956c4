"""Writes a finetuned student in the layout of a training run, for `evaluate` and `export`.

The report excludes the images that the student was finetuned on. Later evaluations use all images,
so their accuracy on unseen classes is too high.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from contract import Release, Report, SplitName, TrainConfig
from distill.data.streamed_pixels import Pixels
from distill.evaluation.score_norm import ScoreNorm
from distill.pipeline.few_shot import Finetuned
from distill.pipeline.job import prepare_folder, text_banks
from distill.pipeline.results import (
    BANK_FILE,
    NAME_BANK_FILE,
    RunInputs,
    accuracies,
    write_results,
)


def write_finetuned_run(
    finetuned: Finetuned, report: Report, config: TrainConfig, release: Release, out: Path
) -> Report:
    """Write the student, its report, text banks and release to the folder `out`.

    `report` is that of the run that trained the student, `config` its configuration.

    Raises:
        DataError: `out` cannot be written to.
    """
    started_at = datetime.now(UTC)
    prepare_folder(out, release)
    unseen = finetuned.inputs.splits["unseen"]
    is_tested = torch.ones(len(unseen), dtype=torch.bool)
    is_tested[finetuned.support] = False
    paths = tuple(path for path, kept in zip(unseen.paths, is_tested.tolist(), strict=True) if kept)
    inputs = finetuned.inputs
    pixels: dict[SplitName, Pixels] = {
        split: inputs.pixels(split, config.image_size) for split in inputs.splits
    }
    features = {split: inputs.teacher_features(split, normalize=False) for split in inputs.splits}
    pixels["unseen"] = pixels["unseen"][is_tested]
    features["unseen"] = features["unseen"][is_tested]
    tested = replace(unseen, paths=paths, targets=unseen.targets[is_tested])
    inputs = replace(inputs, splits={**inputs.splits, "unseen": tested})
    classes = (*inputs.splits["train"].keys, *unseen.keys)
    banks = text_banks(config, release, inputs, classes)
    bank = banks[config.text_strategy]
    bank.save(out / BANK_FILE)
    banks["name"].save(out / NAME_BANK_FILE)
    norm = ScoreNorm.of(features["train"])
    run = RunInputs(
        config=config,
        release=release,
        inputs=inputs,
        checks=report.preflight,
        pixels=pixels,
        banks=banks,
        features=features,
        views=None,
        captions=None,
        teacher_rows=accuracies("teacher", inputs.splits, banks, bank, features, norm),
        started_at=started_at,
    )
    return write_results(run, finetuned.student, out, report.epochs)
