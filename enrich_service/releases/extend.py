"""`enrich labels extend`: add classes to a label set, describe them and create a release.

Only the new classes are described, with the prompt versions of the newest release.
"""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import typer
from sqlalchemy import Engine
from sqlmodel import Session, select

from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import reading, writing
from enrich_service.core.terminal.console import (
    Json,
    database,
    load_settings,
    request,
    show,
    spinner,
)
from enrich_service.core.text import shortened
from enrich_service.generations.models import GenerationStatus
from enrich_service.labels import service as label_service
from enrich_service.labels.schemas import LabelIn
from enrich_service.releases import service
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource, ReleaseView
from enrich_service.runs.commands import open_enricher
from enrich_service.runs.describe import describe
from enrich_service.runs.schemas import Described, DescribeRequest


@dataclass(frozen=True)
class _Plan:
    """The new labels, the prompt versions that describe them, and the name of the new release."""

    labels: list[LabelIn]
    versions: list[tuple[str, int]]  # prompt name, version number
    release: str


def extend(
    label_set: str,
    names: Annotated[list[str], typer.Argument(help="Names of the new classes.")],
    context: Annotated[
        str | None,
        typer.Option(help="Context of the new labels. Default: the most common in the set."),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="Name of the new release. Default: the next number.")
    ] = None,
    author: Annotated[str, typer.Option(help="Author name.", envvar="USER")] = "",
    json: Json = False,
) -> None:
    """Add classes to a label set, describe them and create a release with them."""
    settings = load_settings()
    with database(settings) as engine:
        with reading(engine) as session:
            plan = _plan(session, label_set, names, context, release)
        with spinner("Waiting for the language model"):
            asyncio.run(_describe(engine, settings, plan))
        body = request(
            ReleaseCreate,
            label_set=label_set,
            name=plan.release,
            sources=[
                ReleaseSource(prompt=prompt, version=number) for prompt, number in plan.versions
            ],
            message=f"Added {', '.join(names)}"[:200],
            author=author,
        )
        with writing(engine) as session:
            view = _store(session, plan, body)
    show(view, json=json)


def _plan(
    session: Session, name: str, names: list[str], context: str | None, release: str | None
) -> _Plan:
    label_set = label_service.get(session, name)
    newest = service.listing(session, label_set=name, limit=1)
    if not newest:
        raise Conflict(
            f"Label set {name!r} has no release yet: describe it with `enrich run start {name}`, "
            f"and create one with `enrich release create {name} …`."
        )
    sources = service.parsed(service.get(session, newest[0].id)).sources
    versions = sorted(
        {
            (source.prompt, source.prompt_version)
            for source in sources
            if source.prompt is not None and source.prompt_version is not None
        }
    )
    if not versions:
        raise Conflict(
            f"The texts of release {newest[0].name!r} are not from a prompt: put the new classes "
            "into another label set."
        )
    known = label_service.lines_of(session, label_set)
    known_names = {label.name.casefold() for label in known}
    if duplicate := next((name for name in names if name.strip().casefold() in known_names), None):
        raise Conflict(f"Label set {name!r} already has a label {shortened(duplicate)}.")
    if release is not None and release in _release_names(session):
        raise Conflict(f"Release {release!r} already exists: choose another name.")
    contexts = Counter(label.context for label in known)
    context = context or contexts.most_common(1)[0][0]
    return _Plan(
        labels=[LabelIn(name=name, context=context) for name in names],
        versions=versions,
        release=release or _next_name(session, newest[0].name),
    )


def _release_names(session: Session) -> set[str]:
    return set(session.exec(select(ReleaseRow.name)))


def _next_name(session: Session, name: str) -> str:
    """`name` with the next higher number at its end that is not in use."""
    stem, number = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    stem, count = (stem, int(number)) if number else (f"{name}-", 1)
    taken = _release_names(session)
    while f"{stem}{count + 1}" in taken:
        count += 1
    return f"{stem}{count + 1}"


async def _describe(engine: Engine, settings: Settings, plan: _Plan) -> None:
    """Describe the labels with each prompt version.

    Raises InvalidInput for the first label without an accepted answer.
    """
    async with open_enricher(engine, settings) as enricher:
        for prompt, number in plan.versions:
            body = request(
                DescribeRequest,
                labels=[{"name": label.name, "context": label.context} for label in plan.labels],
                prompt=prompt,
                version=number,
            )
            for described in await describe(enricher, body):
                _require_accepted(described)


def _require_accepted(described: Described) -> None:
    if described.status is not GenerationStatus.ACCEPTED:
        raise InvalidInput(
            f"{described.label!r} has no accepted text of {described.prompt} "
            f"({'; '.join(described.problems)}): nothing was added; try again, or write a text "
            "with `enrich texts`"
        )


def _store(session: Session, plan: _Plan, body: ReleaseCreate) -> ReleaseView:
    """Add the labels and create the release, in one transaction."""
    label_service.extend(session, label_service.get(session, body.label_set), plan.labels)
    row, _ = service.create(session, body)
    return service.view(session, row)
