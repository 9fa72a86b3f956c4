"""A finetuned student as the folder of a run, which `distill evaluate` and `distill export` take.

Notable: its accuracies on unseen classes are those on images that it was not finetuned on. Later
evaluations use all images, and so flatter it.
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
    rest = torch.ones(len(finetuned.inputs.splits["unseen"]), dtype=torch.bool)
    rest[finetuned.support] = False
    unseen = finetuned.inputs.splits["unseen"]
    paths = tuple(path for path, kept in zip(unseen.paths, rest.tolist(), strict=True) if kept)
    inputs = finetuned.inputs
    pixels: dict[SplitName, Pixels] = {
        split: inputs.pixels(split, config.image_size) for split in inputs.splits
    }
    features = {split: inputs.teacher_features(split, normalize=False) for split in inputs.splits}
    pixels["unseen"], features["unseen"] = pixels["unseen"][rest], features["unseen"][rest]
    tested = replace(unseen, paths=paths, targets=unseen.targets[rest])
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
