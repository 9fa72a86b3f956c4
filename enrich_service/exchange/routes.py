"""Import and export over REST."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Body, File, Form, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy import Engine

from enrich_service.core.database import reading
from enrich_service.core.dependencies import EngineDep, Id, ReadSession, WriteSession
from enrich_service.core.errors import InvalidInput
from enrich_service.core.problems import problems
from enrich_service.exchange import service
from enrich_service.exchange.schemas import Imported
from enrich_service.labels import service as label_service
from enrich_service.releases import service as release_service

router = APIRouter(prefix="/v1", tags=["import and export"])

NDJSON = "application/x-ndjson"


def _text(what: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


@router.post(
    "/import/pairs",
    status_code=201,
    summary="Import the paper's text files",
    responses=problems(409, 413),
)
def import_pairs(
    session: WriteSession,
    name: Annotated[str, Form(description="Name of the new label set", examples=["tiny-imagenet"])],
    label2text: Annotated[
        bytes,
        File(
            description="Lines `key index name_with_underscores`",
            examples=["n01443537 1 goldfish\n"],
        ),
    ],
    descriptions: Annotated[
        bytes | None,
        File(
            description="The n-th line describes the n-th label",
            examples=["Goldfish have a plump, rounded body and a forked tail.\n"],
        ),
    ] = None,
    context: Annotated[str | None, Form(description="Context of every label")] = None,
    author: Annotated[str, Form()] = "",
    check_texts: Annotated[bool, Form(description="Store faulty texts as rejected")] = True,
) -> Imported:
    """Make a label set of label2text.txt, and import the texts of chatgpt.txt for it."""
    return service.import_pairs(
        session,
        name,
        _text("label2text", label2text),
        None if descriptions is None else _text("descriptions", descriptions),
        context=context,
        author=author,
        check_texts=check_texts,
    )


@router.post("/import", summary="Import an export", responses=problems(409, 413))
def import_everything(
    body: Annotated[
        bytes,
        Body(
            media_type=NDJSON,
            description="What GET /v1/export gave",
            examples=['{"record":"enrich-export","format":1}\n'],
        ),
    ],
    session: WriteSession,
) -> Imported:
    """Take in an export: all of it or nothing. What is there already stays as it is."""
    return service.import_jsonl(session, _text("The file", body).split("\n"))


def _lines(engine: Engine, label_set: str | None) -> Iterator[str]:
    with reading(engine) as session:
        yield from service.export_jsonl(session, label_set)


@router.get(
    "/export",
    summary="Export everything",
    response_class=StreamingResponse,
    responses=problems(404)
    | {
        200: {
            "description": "One JSON object a line",
            "content": {NDJSON: {"example": '{"record":"enrich-export","format":1}\n'}},
        }
    },
)
def export_everything(
    engine: EngineDep,
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Only what belongs to it")] = None,
) -> StreamingResponse:
    """Label sets, prompts, generations with their provenance and releases, as JSONL."""
    if label_set is not None:
        label_service.get(session, label_set)
    return StreamingResponse(
        _lines(engine, label_set),
        media_type=NDJSON,
        headers={"Content-Disposition": 'attachment; filename="enrich-export.jsonl"'},
    )


@router.get(
    "/releases/{release_id}/label2text.txt",
    summary="Labels as the paper writes them",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def export_label2text(release_id: Id, session: ReadSession) -> str:
    """The labels of a release, lines `key index name_with_underscores`."""
    return service.label2text(release_service.parsed(release_service.get(session, release_id)))


@router.get(
    "/releases/{release_id}/chatgpt.txt",
    summary="Descriptions as the paper writes them",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def export_descriptions(release_id: Id, session: ReadSession) -> str:
    """The descriptions of a release; the n-th line describes the n-th label."""
    return service.descriptions(release_service.parsed(release_service.get(session, release_id)))
