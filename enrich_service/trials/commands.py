"""`enrich try` and `enrich compare`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy import Engine

from contract import first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.core.terminal.console import (
    Json,
    database,
    load_settings,
    read_session,
    show,
    spinner,
)
from enrich_service.prompts.commands import read
from enrich_service.releases.choose_texts import parse_source
from enrich_service.runs.commands import open_enricher
from enrich_service.trials import comparison
from enrich_service.trials.schemas import Trial, TrialRequest
from enrich_service.trials.try_prompt import try_prompt

_FIELDS = {"kind", "system", "user", "output_schema", "model_defaults", "validators"}


def try_(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="JSON file as for `enrich prompts add`."),
    ],
    names: Annotated[list[str], typer.Argument(help="One to 10 class names.")],
    against: Annotated[
        str | None, typer.Option(help="PROMPT@VERSION or PROMPT@ALIAS to compare with.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Context of the classes, e.g. 'a bird'.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Language model.")] = None,
    json: Json = False,
) -> None:
    """Try an unsaved prompt. Its answers are printed, not stored."""
    settings = load_settings()
    prompt = read(file)
    try:
        saved = parse_source(against) if against else None
        body = TrialRequest.model_validate(
            prompt.model_dump(include=_FIELDS)
            | {
                "labels": [{"name": name, "context": context} for name in names],
                "model": model,
                "against": saved.model_dump(exclude={"model"}) if saved else None,
            }
        )
    except ValidationError as error:
        raise InvalidInput(first_error_line(error, str(file))) from error

    async def run(engine: Engine) -> Trial:
        async with open_enricher(engine, settings) as enricher:
            return await try_prompt(enricher, body)

    with database(settings) as engine, spinner("Waiting for the language model"):
        trial = asyncio.run(run(engine))
    if json:
        show(trial, json=True)
        return
    for label in trial.labels:
        typer.echo(label.label)
        for side, tried in (("new", label.candidate), (against, label.against)):
            if tried is not None:
                problems = f" ({'; '.join(tried.problems)})" if tried.problems else ""
                typer.echo(f"  {side}: {tried.text or tried.status}{problems}")
    show([total for total in (trial.candidate, trial.against) if total is not None], json=False)


def compare(
    label_set: str,
    a: Annotated[str, typer.Argument(help="PROMPT@VERSION or PROMPT@ALIAS.")],
    b: Annotated[str, typer.Argument(help="PROMPT@VERSION or PROMPT@ALIAS.")],
    model_a: Annotated[str | None, typer.Option(help="Filter answers by model.")] = None,
    model_b: Annotated[str | None, typer.Option(help="Filter answers by model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Compare stored answers of two prompt versions or models over a label set."""
    with read_session() as session:
        result = comparison.compare(
            session,
            label_set,
            parse_source(a, model_a),
            parse_source(b, model_b),
            load_settings().artifact_dir,
            limit=limit,
            offset=offset,
        )
    if json:
        show(result, json=True)
        return
    for label in result.labels:
        typer.echo(label.name)
        for side, text in (("a", label.a), ("b", label.b)):
            typer.echo(f"  {side}: {(text.text or text.status) if text else 'no answer'}")
    show([result.a, result.b], json=False)
