"""`distill init`: writes a commented training configuration for a data set."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import ValidationError

from contract import TrainConfig, first_error_line
from distill.cli.console import CACHE, CacheOption, notes, one_line_errors
from distill.errors import DataError, UnreadableImages, UserError, counted

if TYPE_CHECKING:
    from contract import SplitName
    from distill.data.files.packed_image import ImagePath
    from distill.data.splits import Split

TEACHER: Final = "ViT-B-32@laion2b_s34b_b79k"
SIZES: Final = (32, 64, 128, 224)  # pixels; the largest size only with a GPU
SAMPLE: Final = 100  # images whose size is read
WANTED_IMAGES: Final = 100_000  # seen by the student over all epochs
EPOCHS: Final = (12, 60)  # minimum, maximum


@one_line_errors
def init(
    data: Annotated[Path, typer.Argument(help="Images: any source of `distill data check`.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("distill.toml"),
    teacher: Annotated[str, typer.Option(help="Teacher, see `distill evaluate`.")] = TEACHER,
    student: Annotated[str, typer.Option(help="Any timm model name.")] = "resnet18",
    pretrained: Annotated[
        bool, typer.Option(help="Start from timm's pretrained weights (downloads them).")
    ] = False,
    cache: CacheOption = CACHE,
) -> None:
    """Write a commented training configuration for a data set."""
    import torch

    from distill.data.splits import scan_splits
    from distill.models.student import timm_config

    if out.exists():
        raise UserError(f"{out} exists already: remove it or choose another --out")
    timm_config(student)
    if teacher != TEACHER:  # open_clip takes seconds to import
        from distill.models.teacher import parse_name

        parse_name(teacher)
    splits = scan_splits(data, cache=cache)
    size = choose_image_size(splits["train"].paths, has_gpu=torch.cuda.is_available())
    images = len(splits["train"])
    epochs = min(max(WANTED_IMAGES // images, EPOCHS[0]), EPOCHS[1])
    try:
        config = TrainConfig(
            data=str(data), teacher=teacher, student=student, pretrained=pretrained,
            image_size=size, epochs=epochs, batch_size=max(2, min(128, images // 4)),
            forecast="unseen" not in splits,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(first_error_line(error)) from None
    text = "\n".join([*_data_comments(data, splits), "", *_settings(config)])
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {out} ({error.strerror}): choose another --out") from None
    notes.print(f"written: {out}", markup=False, soft_wrap=True)


def choose_image_size(paths: "Sequence[ImagePath]", *, has_gpu: bool) -> int:
    """The largest of SIZES up to the median of the images' shorter sides; on a CPU at most 128.

    Images that cannot be read are skipped, since a training lists all of them.

    Raises:
        UnreadableImages: none of the sampled images can be read.
    """
    from distill.data.files.image_file import open_image

    step = -(-len(paths) // SAMPLE)
    sides: list[int] = []
    unreadable: list[str] = []
    for path in paths[::step]:
        try:
            sides.append(min(open_image(path).size))
        except UnreadableImages as error:
            unreadable += error.images
    if not sides:
        raise UnreadableImages(unreadable)
    median = statistics.median(sides)
    fitting = [size for size in SIZES[: None if has_gpu else -1] if size <= median]
    return max(fitting, default=SIZES[0])


def _data_comments(data: Path, splits: "Mapping[SplitName, Split]") -> list[str]:
    """TOML comments that describe the data."""
    lines = [f"# What `distill init` found in {str(data)!r}:"]
    for name, split in splits.items():
        held_out = ", held out of training" if split.held_out else ""
        lines.append(
            f"#   {name}: {counted(len(split), 'image')} of "
            f"{counted(len(split.keys), 'class')}{held_out}"
        )
    if "unseen" not in splits:
        lines += [
            "#   no unseen classes: the accuracy on later classes can only be forecast.",
            "#   To measure it, hold some out: `distill data split DATA --unseen N --out DIR`.",
        ]
    return lines


def _settings(config: TrainConfig) -> list[str]:
    """The settings as TOML, each with its reason."""
    start = (
        "timm's pretrained weights"
        if config.pretrained
        else "random weights; pretrained = true downloads timm's, better with few images"
    )
    return [
        f"data = {json.dumps(config.data, ensure_ascii=False)}",
        "",
        "# The model to learn from. Other names: `open_clip.list_pretrained()` as NAME@TAG, or",
        "# hf-hub:ORGANISATION/NAME, or local-dir:FOLDER.",
        f"teacher = {json.dumps(config.teacher)}",
        "",
        f"# The model to train: any image model of timm. It starts from {start}.",
        f"student = {json.dumps(config.student)}",
        f"pretrained = {str(config.pretrained).lower()}",
        "",
        "# Side of the square images in pixels. Twice the side takes four times as long.",
        f"image_size = {config.image_size}",
        "",
        "# Text of a class: name, name+description, attributes, ensemble or captions.",
        f"text_strategy = {json.dumps(config.text_strategy)}",
        "",
        "# Passes over the training images.",
        f"epochs = {config.epochs}",
        f"batch_size = {config.batch_size}",
        "",
        "# Defaults for this student, its initial weights and its optimiser (muon, adamw, sgd).",
        f"optimiser = {json.dumps(config.optimiser)}",
        f"learning_rate = {config.learning_rate:g}",
        "",
        "# Forecast the accuracy on classes that are added later; adds half the training time.",
        f"forecast = {str(config.forecast).lower()}",
        "",
        "# Random seed of initial weights, batches and augmentation.",
        f"seed = {config.seed}",
    ]
