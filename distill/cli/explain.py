"""`distill explain`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from contract import Release
from distill.cli.console import (
    DeviceOption,
    JsonOption,
    one_line_errors,
    release_given,
)
from distill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from distill.evaluation.explain import Explanation


@one_line_errors
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    student: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    release: Annotated[
        Path | None, typer.Option(help="Release as JSON. Default: that of the run --student.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Default: the teacher of the run --student.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Only this class, by key or name (repeatable)."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show.")] = 5,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """The predicted classes of images, and the attributes that support each of them.

    With --student, an attribute fires if its score is clearly above its mean over other images, and
    the run's seen bias is subtracted from the scores of the classes that it was trained on.
    """
    from distill.evaluation.explain import Explanation, Explanations, encode_attributes, restrict
    from distill.evaluation.explain import explain as explain_features
    from distill.evaluation.report.training_report import read_report
    from distill.evaluation.score_norm import FILE as NORM_FILE
    from distill.evaluation.score_norm import ScoreNorm
    from distill.models.devices import choose_device
    from distill.models.teacher import load_teacher
    from distill.pipeline.inputs import file_features
    from distill.pipeline.job import RELEASE_FILE

    if student is not None:
        teacher = teacher or read_report(student).config.teacher
        release = release or student / RELEASE_FILE
    if teacher is None:
        raise UserError("name a model: --student FOLDER of a training run, or --teacher NAME")
    chosen = restrict(release_given(release, None, None), classes or ())
    norm = None if student is None else ScoreNorm.load(student / NORM_FILE)
    model = load_teacher(teacher, device=choose_device(device))
    features = file_features(images, model, student)
    biases = None if student is None else seen_biases(student, chosen)
    texts = encode_attributes(model, chosen)
    explained = explain_features(features, texts, top, norm, biases)
    result = Explanations(
        model="teacher" if student is None else "student",
        teacher=model.name,
        release_hash=chosen.hash,
        images=tuple(
            Explanation(image=str(path), classes=explained_classes)
            for path, explained_classes in zip(images, explained, strict=True)
        ),
    )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    for image in result.images:
        print_explanation(image)


def seen_biases(student: Path, release: Release) -> "Tensor":
    """The bias [classes] subtracted from the score of each class of `release`: the seen bias of the
    run in `student` for the classes that it was trained on, 0 for the others.
    """
    import torch

    from distill.embeddings.text_bank import TextBank
    from distill.evaluation.report.training_report import read_report
    from distill.pipeline.results import BANK_FILE

    report = read_report(student)
    bias = 0.0 if report.calibration is None else report.calibration.seen_bias
    # The bank has the trained classes first, then the unseen ones.
    unseen = max((row.classes for row in report.accuracies if row.split == "unseen"), default=0)
    keys = TextBank.load(student / BANK_FILE).keys
    trained = set(keys[: len(keys) - unseen])
    return torch.tensor([bias if label.key in trained else 0.0 for label in release.labels])


def print_explanation(image: "Explanation") -> None:
    """Print the classes of an image with the attributes that fired; without evidence, with all."""
    has_evidence = any(a.fired is not None for row in image.classes for a in row.attributes)
    header = "attributes that fired (deviations above the mean)" if has_evidence else "attributes"
    table = Table("class", "score", header, title=image.image)
    for explained in image.classes:
        lines = [
            f"{attribute.attribute} ({attribute.cosine:.3f})"
            if attribute.evidence is None
            else f"{attribute.attribute} (+{attribute.evidence:.1f})"
            for attribute in explained.attributes
            if attribute.fired is not False
        ]
        table.add_row(explained.name, f"{explained.score:.3f}", "\n".join(lines) or "none")
    Console().print(table)
