"""`distill learn-prompt`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill.cli.console import (
    CACHE,
    CacheOption,
    DataOption,
    DescriptionsOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    ReleaseOption,
    TeacherOption,
    bars,
    one_line_errors,
    release_given,
)


@one_line_errors
def learn_prompt(
    data: DataOption,
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help="The text bank to write, a safetensors file.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    tokens: Annotated[int, typer.Option(min=1, help="Context tokens to learn.")] = 4,
    described: Annotated[bool, typer.Option(help="Append the description to the name.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 256 images.")] = 200,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: DeviceOption = "auto",
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Learn a context that replaces "a photo of", on the seen classes (CoOp)."""
    from distill.data.splits import scan_splits
    from distill.models.devices import choose_device
    from distill.models.teacher import load_teacher
    from distill.pipeline.inputs import Inputs
    from distill.pipeline.prompt_learning import Settings
    from distill.pipeline.prompt_learning import learn_prompt as learn

    chosen = release_given(release, labels, descriptions)
    splits = scan_splits(data, {label.key for label in chosen.labels}, cache=cache)
    with bars() as bar:
        inputs = Inputs(splits, load_teacher(teacher, device=choose_device(device)), cache, bar)
        result = learn(inputs, chosen, Settings(tokens, described, steps, seed), out)
    if as_json:
        print(result.model_dump_json())  # noqa: T201
        return
    table = Table("text", "split", "top-1 %", title=f"{tokens} learned tokens → {out}")
    for row in result.accuracies:
        table.add_row(row.text, row.split, f"{row.top1:.1f}")
    Console().print(table)
