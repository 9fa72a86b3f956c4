"""`distill init`: a training configuration with comments, for the data that are there."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import ValidationError

from contract import TrainConfig, first_error_line
from distill.cli.console import CACHE, CacheOption, notes, one_line_errors
from distill.errors import DataError, UserError

if TYPE_CHECKING:
    from contract import SplitName
    from distill.data.files.packed_image import ImagePath
    from distill.data.splits import Split

TEACHER: Final = "ViT-B-32@laion2b_s34b_b79k"
SIZES: Final = (32, 64, 128, 224)  # pixels; the largest one only where there is a GPU
SAMPLE: Final = 100  # images whose size is looked at
WANTED_IMAGES: Final = 100_000  # seen by the student over all epochs
EPOCHS: Final = (12, 60)  # at least, at most


@one_line_errors
def init(
    data: Annotated[Path, typer.Argument(help="Images: any source of `distill data check`.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("distill.toml"),
    teacher: Annotated[str, typer.Option(help="Teacher, see `distill evaluate`.")] = TEACHER,
    student: Annotated[str, typer.Option(help="Any timm model name.")] = "resnet18",
    pretrained: Annotated[
        bool, typer.Option(help="Start from timm's weights, which are downloaded.")
    ] = False,
    cache: CacheOption = CACHE,
) -> None:
    """Write a commented training configuration for a data set."""
    import torch

    from distill.data.splits import scan_splits

    if out.exists():
        raise UserError(f"{out} exists already: remove it or choose another --out")
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
    text = "\n".join([*_found(data, splits), "", *_settings(config)])
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {out} ({error.strerror}): choose another --out") from None
    notes.print(f"written: {out}", markup=False, soft_wrap=True)


def choose_image_size(paths: "Sequence[ImagePath]", *, has_gpu: bool) -> int:
    """The largest size that the median of the images' shorter sides fills, on a CPU at most 128."""
    from distill.data.files.image_file import open_image

    step = -(-len(paths) // SAMPLE)
    median = statistics.median(min(open_image(path).size) for path in paths[::step])
    fitting = [size for size in SIZES[: None if has_gpu else -1] if size <= median]
    return max(fitting, default=SIZES[0])


def _found(data: Path, splits: "Mapping[SplitName, Split]") -> list[str]:
    """Comments on the data."""
    lines = [f"# What `distill init` found in {str(data)!r}:"]
    for name, split in splits.items():
        held_out = ", held out of training" if split.held_out else ""
        lines.append(f"#   {name}: {len(split):,} images of {len(split.keys)} classes{held_out}")
    if "unseen" not in splits:
        lines += [
            "#   no unseen classes: how well later classes are recognised can only be forecast.",
            "#   `distill data split DATA --unseen N --out DIR` holds some out, to measure it.",
        ]
    return lines


def _settings(config: TrainConfig) -> list[str]:
    """The settings as TOML, each with its reason."""
    start = (
        "timm's trained weights"
        if config.pretrained
        else "random weights; pretrained = true downloads trained ones, better for few images"
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
        "# Pixels, square. Twice the size takes four times as long.",
        f"image_size = {config.image_size}",
        "",
        "# What a class's text is: name, name+description, attributes, ensemble or captions.",
        f"text_strategy = {json.dumps(config.text_strategy)}",
        "",
        "# Passes over the training images.",
        f"epochs = {config.epochs}",
        f"batch_size = {config.batch_size}",
        "",
        "# Chosen for this kind of student, its start and its optimiser (muon, adamw or sgd).",
        f"optimiser = {json.dumps(config.optimiser)}",
        f"learning_rate = {config.learning_rate:g}",
        "",
        "# Forecast how well classes will be recognised that come later: half a training more.",
        f"forecast = {str(config.forecast).lower()}",
        "",
        "# Decides initial weights, batches and augmentation.",
        f"seed = {config.seed}",
    ]
