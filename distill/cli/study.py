"""The commands that ask more of a teacher or a student: few-shot, explain, learn-prompt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from contract import Explanation, Explanations, FewShotMethod, PromptLearning, Release, TrainConfig
from distill.cli.console import (
    CACHE,
    CacheOption,
    DescriptionsOption,
    JsonOption,
    LabelsOption,
    ReleaseOption,
    StrategyOption,
    TeacherOption,
    bars,
    one_line_errors,
    release_given,
    strategy_given,
)
from distill.errors import UserError

RunTeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="Where the run's teacher lies now, if elsewhere.")
]


def run_config(
    student: Path, release: Release, *, data: Path, teacher: str | None, strategy: str | None
) -> TrainConfig:
    """The configuration of the run in the folder `student`, with what the options change."""
    from distill.evaluation.report import read_report

    config = read_report(student).config
    changes: dict[str, str] = {"data": str(data)}
    if teacher is not None:
        changes["teacher"] = teacher
    if strategy is not None:
        changes["text_strategy"] = strategy_given(strategy, release)
    return config.model_copy(update=changes)


@one_line_errors
def few_shot(
    student: Annotated[Path, typer.Option(help="Folder of a training run.")],
    data: Annotated[Path, typer.Option(help="Folder with val/; finetuning also needs the others.")],
    ks: Annotated[list[int], typer.Option("-k", help="Support images of each class; repeat it.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    method: Annotated[FewShotMethod, typer.Option(help="How the support is used.")] = "retrieval",
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of the support.")] = 3,
    strategy: StrategyOption = None,
    teacher: RunTeacherOption = None,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Accuracy on unseen classes with k labelled images of each, over several draws of them."""
    from distill.models.student import FILE, load_student
    from distill.pipeline.few_shot import few_shot as measure

    chosen = release_given(release, labels, descriptions)
    config = run_config(student, chosen, data=data, teacher=teacher, strategy=strategy)
    network, _ = load_student(student / FILE)
    with bars() as bar:
        result = measure(
            config,
            network,
            chosen,
            method=method,
            ks=ks,
            seeds=range(seeds),
            cache=cache,
            progress=bar,
        )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    said = ", ".join(f"{name} {value:g}" for name, value in result.settings.items())
    draws = f"{seeds} draw{'s' if seeds > 1 else ''}"
    columns = ["model", "k", "top-1 %", "per class %", "text alone %", "images"]
    if method == "finetune":
        columns.append("seen top-1 %")
    table = Table(*columns, title=f"{method}, {result.classes} unseen classes, {draws} ({said})")
    for row in result.rows:
        table.add_row(
            row.model,
            str(row.k),
            with_deviation(row.top1, row.top1_deviation),
            with_deviation(row.mean_per_class, row.mean_per_class_deviation),
            f"{row.text_only_top1:.1f}",
            str(row.images),
            *(() if row.seen_top1 is None else (f"{row.seen_top1:.1f}",)),
        )
    Console().print(table)


def with_deviation(value: float, deviation: float | None) -> str:
    """12.3 ± 0.4, or 12.3 where there is but one value."""
    return f"{value:.1f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"


@one_line_errors
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    release: ReleaseOption = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher that looks; with --student, that of its run.")
    ] = None,
    student: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Which classes a teacher or a student sees in images, and which attributes speak for each."""
    import torch

    from distill.data.image_file import open_image, square
    from distill.evaluation.explain import encode_attributes
    from distill.evaluation.explain import explain as explain_features
    from distill.evaluation.report import read_report
    from distill.models.student import FILE, load_student
    from distill.models.teacher import load_teacher

    chosen = release_given(release, None, None)
    pictures = [open_image(path) for path in images]
    if student is not None and teacher is None:
        teacher = read_report(student).config.teacher
    if teacher is None:
        raise UserError("say who looks: --teacher NAME, or --student FOLDER of a training run")
    model = load_teacher(teacher)
    if student is None:
        seen = torch.stack([model.preprocess(picture) for picture in pictures])
        features = model.encode_image(seen)
    else:
        network, size = load_student(student / FILE)
        pixels = torch.stack([torch.from_numpy(square(picture, size)) for picture in pictures])
        features = network.encode(pixels)
    explained = explain_features(features, encode_attributes(model, chosen), top)
    result = Explanations(
        model="teacher" if student is None else "student",
        teacher=model.name,
        release_hash=chosen.hash,
        images=tuple(
            Explanation(image=str(path), classes=classes)
            for path, classes in zip(images, explained, strict=True)
        ),
    )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    for image in result.images:
        table = Table("class", "score", "attributes that fired (evidence)", title=image.image)
        for each in image.classes:
            fired = (f"{x.attribute} (+{x.evidence:.3f})" for x in each.attributes if x.fired)
            table.add_row(each.name, f"{each.score:.3f}", "\n".join(fired) or "none")
        Console().print(table)


@one_line_errors
def learn_prompt(
    data: Annotated[Path, typer.Option(help="Folder with train/, val_on_train/ and val/.")],
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help="The text bank to write, a safetensors file.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    tokens: Annotated[int, typer.Option(min=1, help="Context tokens to learn.")] = 4,
    described: Annotated[bool, typer.Option(help="Put the description behind the name.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 256 images.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides the batches and what is drawn.")] = 0,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Learn what stands in the place of "a photo of", on the seen classes (CoOp)."""
    from distill.data.splits import scan_split
    from distill.embeddings.image_features import image_features
    from distill.embeddings.text_bank import TextBank, build_text_bank
    from distill.evaluation.accuracy import accuracy
    from distill.models.teacher import load_teacher
    from distill.pipeline.prompt_learning import encode_learned, learn_context

    chosen = release_given(release, labels, descriptions)
    known = {label.key: label for label in chosen.labels}
    splits = {word: scan_split(data, word, known) for word in ("train", "seen", "unseen")}
    model = load_teacher(teacher)
    with bars() as bar:
        features = {
            word: image_features(
                model, split, cache=cache, progress=bar(f"Teacher features, {word}")
            )
            for word, split in splits.items()
        }
    learned = learn_context(
        model,
        [known[key] for key in splits["train"].keys],
        features["train"],
        splits["train"].targets,
        tokens=tokens,
        described=described,
        steps=steps,
        seed=seed,
    )
    strategy = strategy_given("name+description" if described else "name", chosen)
    keys = tuple(dict.fromkeys((*splits["seen"].keys, *splits["unseen"].keys)))
    bank = TextBank(
        encode_learned(model, [known[key] for key in keys], learned.context, described=described),
        keys,
        tuple(known[key].name for key in keys),
        strategy,
        model.name,
        chosen.hash,
        learned=tokens,
    )
    bank.save(out)
    by_hand = build_text_bank(model, chosen, strategy, keys=keys, cache=cache)
    result = PromptLearning(
        teacher=model.name,
        release_hash=chosen.hash,
        file=str(out),
        tokens=tokens,
        described=described,
        steps=steps,
        seed=seed,
        loss_before=learned.loss_before,
        loss_after=learned.loss_after,
        accuracies=tuple(
            accuracy("teacher", word, features[word], splits[word].targets, splits[word].keys, each)
            for each in (by_hand, bank)
            for word in ("seen", "unseen")
        ),
    )
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    table = Table("text", "split", "top-1 %", title=f"{tokens} learned tokens → {out}")
    for row in result.accuracies:
        table.add_row(row.text, row.split, f"{row.top1:.1f}")
    Console().print(table)
