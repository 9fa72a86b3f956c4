"""The `distill` command: text banks, training, evaluation, diagnostics, reports, the worker."""

import json
import os
import signal
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from contract import EventKind, Report, SeedsReport, Spread, TestViews, TrainConfig
from distill.cli import data as cli_data
from distill.cli import study as cli_study
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
    notes,
    one_line_errors,
    release_given,
    show,
    strategy_given,
)
from distill.data.allowed_paths import check_roots
from distill.errors import TextError, UserError

# torch, open_clip and timm take seconds to import: each command imports what it needs.

DataRootOption = Annotated[
    list[Path] | None,
    typer.Option("--data-root", help="Only read images and local teachers in here (repeatable)."),
]
# A job that needs more than a Ray cluster has waits there, until its autoscaler has brought it.
WHOLE_CLUSTER = {"gpu": True, "memory_gb": 1_000_000}

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
app.command("few-shot")(cli_study.few_shot)
app.command()(cli_study.explain)
app.command("learn-prompt")(cli_study.learn_prompt)
app.add_typer(cli_data.app, name="data")


@app.command("text-bank")
@one_line_errors
def text_bank(
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode the texts of a release with a teacher."""
    from distill.embeddings.text_bank import build_text_bank
    from distill.models.teacher import load_teacher

    chosen = release_given(release, labels, descriptions)
    bank = build_text_bank(load_teacher(teacher), chosen, strategy_given(strategy, chosen))
    bank.save(out)
    flagged = f", {len(bank.flagged)} longer than the context" if bank.flagged else ""
    notes.print(f"{len(bank.keys)} classes, {bank.features.shape[1]} dimensions{flagged} → {out}")
    if as_json:
        summary = {
            "file": str(out),
            "classes": len(bank.keys),
            "dim": bank.features.shape[1],
            "strategy": bank.strategy,
            "teacher": bank.teacher,
            "release_hash": bank.release_hash,
            "flagged": bank.flagged,
        }
        print(json.dumps(summary))  # noqa: T201


@app.command()
@one_line_errors
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder with val_on_train/ (seen), val/ (unseen).")],
    teacher: TeacherOption,
    split: Annotated[str, typer.Option(help="val or unseen, val_on_train or seen.")] = "val",
    student: Annotated[
        Path | None, typer.Option(help="Folder of a training run; without it, the teacher's turn.")
    ] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    text_bank: Annotated[
        Path | None, typer.Option(help="A text bank in the place of a release.")
    ] = None,
    test_views: Annotated[
        TestViews | None,
        typer.Option(help="What the student sees of an image; by default what its run says."),
    ] = None,
    normalised: Annotated[
        bool,
        typer.Option("--normalised", help="Standardise each class's scores, as the report does."),
    ] = False,
    cache: CacheOption = CACHE,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a teacher or a student on one split, against the texts of a release."""
    import torch

    from distill.data.pixels import load_pixels
    from distill.data.splits import SPLIT_WORDS, scan_split
    from distill.embeddings.image_features import image_features
    from distill.embeddings.text_bank import TextBank, build_text_bank
    from distill.evaluation.accuracy import accuracy
    from distill.evaluation.report import NORMALISED
    from distill.evaluation.score_norm import FILE as NORM_FILE
    from distill.evaluation.score_norm import ScoreNorm
    from distill.models.student import FILE, load_student
    from distill.models.teacher import load_teacher

    if split not in SPLIT_WORDS:
        raise TextError(f"there is no split {split!r} to evaluate on: choose seen or unseen")
    word = SPLIT_WORDS[split]
    if student is None and (test_views or normalised):
        raise UserError("--test-views and --normalised are for a student: give --student FOLDER")
    norm = ScoreNorm.load(student / NORM_FILE) if student is not None and normalised else None
    if text_bank is None:
        chosen = release_given(release, labels, descriptions)
        images = scan_split(data, word, {label.key for label in chosen.labels})
        model = load_teacher(teacher)
        bank = build_text_bank(
            model, chosen, strategy_given(strategy, chosen), keys=images.keys, cache=cache
        )
    else:
        if release or labels or descriptions or strategy:
            raise TextError("give either --text-bank or a release with its strategy, not both")
        bank = TextBank.load(text_bank)
        images = scan_split(data, word, bank.keys)
        if bank.teacher != teacher:
            raise TextError(f"{text_bank} was made with the teacher {bank.teacher}: give that one")
        model = load_teacher(teacher)
    with bars() as bar:
        if student is None:
            features = image_features(model, images, cache=cache, progress=bar("Teacher features"))
        else:
            network, size = load_student(student / FILE)
            pixels = load_pixels(images, size, cache, bar("Pixels"))
            features = network.encode(torch.from_numpy(pixels), test_views)
    who: Literal["teacher", "student"] = "teacher" if student is None else "student"
    text = NORMALISED if normalised else None
    result = accuracy(who, word, features, images.targets, images.keys, bank, text=text, norm=norm)
    show(result, as_json, f"{who} on {word} classes")


@app.command()
@one_line_errors
def diagnose(
    embeddings: Annotated[Path | None, typer.Option(help="An .npz file of text features.")] = None,
    key: Annotated[str, typer.Option(help="Which array of the .npz file.")] = "name",
    teacher: Annotated[str | None, typer.Option(help="Teacher that encodes the texts.")] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    strategy: StrategyOption = None,
    as_json: JsonOption = False,
) -> None:
    """How close class texts lie: cosines, spectrum, the most confusable pairs."""
    from distill.evaluation.diagnostics import diagnose as diagnose_features
    from distill.evaluation.diagnostics import read_embeddings

    if embeddings is not None:
        features, names = read_embeddings(embeddings, key)
        text = key
    elif teacher is not None:
        from distill.embeddings.text_bank import build_text_bank
        from distill.models.teacher import load_teacher

        chosen = release_given(release, labels, descriptions)
        bank = build_text_bank(load_teacher(teacher), chosen, strategy_given(strategy, chosen))
        features, names, text = bank.features, list(bank.names), bank.strategy
    else:
        raise TextError("give --embeddings FILE.npz, or --teacher with a release")
    result = diagnose_features(features, names, text)
    show(result, as_json, f"Text features '{text}'")
    if not as_json:
        table = Table("Most confusable", "", "cosine")
        for pair in result.confusable:
            table.add_row(pair.a, pair.b, f"{pair.cosine:.4f}")
        Console().print(table)


def read_config(path: Path, preset: str | None = None) -> TrainConfig:
    """The training configuration in a TOML or JSON file, on top of the preset of that name.

    Raises:
        UserError: the file is missing or malformed, a field is wrong, or there is no such preset.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return TrainConfig.model_validate({**read_preset(preset), **values} if preset else values)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path} ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {where}: {reason}") from None
    except ValueError as error:
        raise UserError(f"{path} is neither TOML nor JSON: {error}") from None


def read_preset(name: str) -> dict[str, Any]:
    """The fields of the preset called `name`, one of those that the package brings.

    Raises:
        UserError: there is none of that name.
    """
    presets = {path.stem: path for path in (Path(__file__).parents[1] / "presets").glob("*.toml")}
    if name not in presets:
        raise UserError(f"there is no preset {name!r}: choose {' or '.join(sorted(presets))}")
    return tomllib.loads(presets[name].read_text(encoding="utf-8"))


@app.command()
@one_line_errors
def train(
    config: Annotated[Path, typer.Option(help="Training configuration, TOML or JSON.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, student and report.")],
    preset: Annotated[
        str | None, typer.Option(help="resnet or vit: the paper's protocol below --config.")
    ] = None,
    release: ReleaseOption = None,
    labels: LabelsOption = None,
    descriptions: DescriptionsOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0,1,2: a run each, and one report of all.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    events: Annotated[bool, typer.Option(help="One JSON line an event on stdout.")] = False,
    cache: CacheOption = CACHE,
    data_root: DataRootOption = None,
) -> None:
    """Distil a student and write its report.

    On several GPUs: torchrun --nproc-per-node 2 -m distill train …
    """
    settings = read_config(config, preset)
    if data_root:
        check_roots(settings, data_root)
    chosen = release_given(release, labels, descriptions)
    numbers = None if seeds is None else parse_seeds(seeds)
    from distill.pipeline.job import run_job
    from distill.pipeline.seeds import run_seeds
    from distill.training.distributed import processes
    from distill.training.loop import Interrupted
    from distill.training.malloc_tuning import is_out_of_memory, out_of_memory
    from distill.worker import INTERRUPTED, OUT_OF_MEMORY, event_line

    stop, parent = {"asked": False}, os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    signal.signal(signal.SIGINT, lambda *_: stop.update(asked=True))
    with bars() as bar:
        shown: dict[str, Callable[[int, int], None]] = {}

        def on_event(kind: EventKind, data: dict[str, Any]) -> None:
            if events:
                print(event_line(kind, data), flush=True)  # noqa: T201
            elif kind is EventKind.PROGRESS:
                phase = data["phase"]
                if phase not in shown:
                    shown[phase] = bar(phase)
                shown[phase](data["step"], data["steps"])
            elif kind is EventKind.EPOCH:
                notes.print(
                    f"epoch {data['epoch']}: loss {data['loss']:.3f}, "
                    f"seen {data['seen_top1']:.1f} %, {data['images_per_second']:.0f} images/s"
                )
            elif kind is EventKind.LOG:
                notes.print(data["message"], markup=False)

        how: dict[str, Any] = {
            "cache": cache,
            "resume": resume,
            "on_event": on_event,
            # The worker that reads the events may be killed: end then, with a checkpoint.
            "should_stop": lambda: stop["asked"] or (events and os.getppid() != parent),
        }
        try:
            if numbers is None:
                report: Report | SeedsReport = run_job(settings, chosen, out, **how)
            else:
                report = run_seeds(settings, chosen, out, numbers, **how)
        except Interrupted:
            if not processes().is_main_process:
                raise typer.Exit(INTERRUPTED) from None
            print(  # noqa: T201
                f"distill: stopped; go on with the same command and --resume ({out})",
                file=sys.stderr,
            )
            raise typer.Exit(INTERRUPTED) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = out_of_memory(settings.batch_size)
            print(f"distill: {said}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(OUT_OF_MEMORY) from None
    if processes().is_main_process and not events:
        print_accuracies(report.accuracies)
        page = "report.html" if numbers is None else "seeds.html"
        notes.print(f"report: {out / page}", markup=False)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in a list such as 0,1,2.

    Raises:
        UserError: it is no list of different whole numbers.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{text!r} is no list of different seeds: give them as in --seeds 0,1,2")
    return seeds


def print_accuracies(rows: tuple[Any, ...]) -> None:
    """The seen/unseen table of a report."""
    table = Table("model", "text", "seen top-1 %", "unseen top-1 %")
    cells = {(row.model, row.text, row.split): _shown(row.top1) for row in rows}
    for model, text in dict.fromkeys((row.model, row.text) for row in rows):
        values = (cells.get((model, text, split)) for split in ("seen", "unseen"))
        table.add_row(model, text, *("–" if v is None else v for v in values))
    Console().print(table)


def _shown(value: float | Spread) -> str:
    if isinstance(value, Spread):
        return f"{value.mean:.1f} ± {value.deviation:.1f}"
    return f"{value:.1f}"


@app.command()
@one_line_errors
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a training run.")],
) -> None:
    """Render report.html again from a finished run."""
    from distill.pipeline.job import render_again

    print(render_again(folder))  # noqa: T201


@app.command()
@one_line_errors
def worker(
    service: Annotated[str, typer.Option(help="Address of the enrichment service.")],
    once: Annotated[bool, typer.Option(help="Stop when there is nothing left to do.")] = False,
    work_dir: Annotated[Path, typer.Option(help="Checkpoints and results.")] = Path("distill-out"),
    name: Annotated[str, typer.Option(help="What the service calls this worker.")] = "",
    data_root: DataRootOption = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Let a Ray cluster train: its job server, like http://head:8265."),
    ] = None,
    ray_processes: Annotated[int, typer.Option(min=1, help="Of a training on Ray.")] = 1,
) -> None:
    """Take training jobs from the service, one after the other."""
    from distill.worker import TRAIN, work

    on_ray = (sys.executable, "-m", "distill.on_ray.submit", "--address", ray or "")
    work(
        service,
        work_dir=work_dir.absolute(),  # a Ray job runs in another folder
        once=once,
        name=name or f"{os.uname().nodename}-{os.getpid()}",
        api_key=os.environ.get("ENRICH_API_KEY"),
        command=(*on_ray, "--processes", str(ray_processes)) if ray else TRAIN,
        offers=WHOLE_CLUSTER if ray else None,
        data_roots=[root.absolute() for root in data_root or ()],
    )
