"""Import and export over REST."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, File, Form, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from sqlalchemy import Engine
from sqlmodel import Session

from contract import Release
from enrich_service.core.errors import InvalidInput
from enrich_service.core.rest.dependencies import (
    EngineDep,
    Id,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from enrich_service.core.rest.problems import problems
from enrich_service.core.storage.database import reading
from enrich_service.exchange import (
    captions,
    class_lists,
    csv_files,
    jsonl_export,
    jsonl_import,
    manifest,
    text_pairs,
)
from enrich_service.exchange.schemas import Imported, Manifest
from enrich_service.labels import service as label_service
from enrich_service.prompts.schemas import PromptKind
from enrich_service.releases import service as release_service
from enrich_service.releases.schemas import ReleaseView

router = APIRouter(prefix="/v1", tags=["import and export"])

NDJSON = "application/x-ndjson"
CSV = "text/csv; charset=utf-8"
_DUCKS = "key,name,context,description\nmallard,mallard,a bird,A duck with a green head.\n"
_GENERATIONS = 'id,kind,source,status,label_name,parsed\n1,description,import,accepted,teal,"{}"\n'
_REVIEWS = (
    "generation,kind,label_name,action,reason,author,at\n"
    "1,description,teal,approve,,ada,2026-01-02T03:04:05+00:00\n"
)
_CONFUSABLE = "key,confusable\nmallard,teal\n"
_LISTS = {"application/json": {"example": {"teal": ["a green wing patch", "a chestnut head"]}}}


def _csv(description: str, example: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {CSV: {"example": example}}}}


def _download(lines: Iterator[str], name: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines, media_type=CSV, headers=headers)


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
    context: Annotated[str | None, Form(description="Context for every label")] = None,
    author: Annotated[str, Form()] = "",
    check_texts: Annotated[
        bool, Form(description="Validate texts; store invalid ones as rejected")
    ] = True,
) -> Imported:
    """Create a label set from label2text.txt and import the texts of chatgpt.txt."""
    return text_pairs.import_pairs(
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
            description="Body of GET /v1/export",
            examples=['{"record":"enrich-export","format":1}\n'],
        ),
    ],
    session: WriteSession,
) -> Imported:
    """Import an export, or nothing if a line is invalid. Existing records are unchanged."""
    return jsonl_import.import_jsonl(session, _text("The file", body).split("\n"))


Exporter = Callable[[Session, str | None], Iterator[str]]


def _lines(
    export: Exporter, engine: Engine, session: Session, label_set: str | None
) -> Iterator[str]:
    """The lines of an export, of everything or of one label set. Raises NotFound at once."""
    if label_set is not None:
        label_service.get(session, label_set)
    return _read(export, engine, label_set)


def _read(export: Exporter, engine: Engine, label_set: str | None) -> Iterator[str]:
    with reading(engine) as session:  # the request's session is closed before the response is sent
        yield from export(session, label_set)


@router.get(
    "/export",
    summary="Export everything",
    response_class=StreamingResponse,
    responses=problems(404)
    | {
        200: {
            "description": "One JSON object per line",
            "content": {NDJSON: {"example": '{"record":"enrich-export","format":1}\n'}},
        }
    },
)
def export_everything(
    engine: EngineDep,
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Filter by label set")] = None,
) -> StreamingResponse:
    """Export label sets, prompts, generations with provenance and releases as JSON Lines."""
    return StreamingResponse(
        _lines(jsonl_export.export_jsonl, engine, session, label_set),
        media_type=NDJSON,
        headers={"Content-Disposition": 'attachment; filename="enrich-export.jsonl"'},
    )


@router.get(
    "/releases/{release_id}/label2text.txt",
    summary="Export label2text.txt",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def export_label2text(release_id: Id, session: ReadSession) -> str:
    """The labels of a release, lines `key index name_with_underscores`."""
    return text_pairs.label2text(release_service.parsed(release_service.get(session, release_id)))


@router.get(
    "/releases/{release_id}/chatgpt.txt",
    summary="Export chatgpt.txt",
    response_class=PlainTextResponse,
    responses=problems(404),
)
def export_descriptions(release_id: Id, session: ReadSession) -> str:
    """The descriptions of a release; the n-th line describes the n-th label."""
    return text_pairs.descriptions(release_service.parsed(release_service.get(session, release_id)))


def _release(session: ReadSession, release_id: int) -> Release:
    return release_service.parsed(release_service.get(session, release_id))


@router.get(
    "/releases/{release_id}/manifest.json",
    summary="Show the manifest",
    responses=problems(404),
)
def show_manifest(release_id: Id, session: ReadSession) -> Manifest:
    """Show the number of texts by source and model, and all prompt versions of a release."""
    return manifest.manifest(session, _release(session, release_id))


@router.get(
    "/releases/{release_id}/descriptors.json",
    summary="Export descriptors (classify-by-description)",
    responses=problems(404, 409) | {200: {"content": _LISTS}},
)
def export_descriptors(release_id: Id, session: ReadSession) -> dict[str, list[str]]:
    """The attributes of a release as one JSON object: class name to short descriptors."""
    return class_lists.descriptors(_release(session, release_id))


@router.get(
    "/releases/{release_id}/sentences.json",
    summary="Export sentences (CuPL)",
    responses=problems(404, 409) | {200: {"content": _LISTS}},
)
def export_sentences(release_id: Id, session: ReadSession) -> dict[str, list[str]]:
    """The sentences of a release as one JSON object: class name to sentences."""
    return class_lists.sentences(_release(session, release_id))


@router.get(
    "/releases/{release_id}/release.csv",
    summary="Export a release as CSV",
    response_class=StreamingResponse,
    responses=problems(404) | _csv("Lists and objects in JSON; formulas escaped", _DUCKS),
)
def export_release_csv(release_id: Id, session: ReadSession) -> StreamingResponse:
    """Export the texts of a release, one label per line."""
    return _download(csv_files.release_csv(_release(session, release_id)), "release.csv")


@router.get(
    "/runs/{run_id}/captions.jsonl",
    summary="Export image captions",
    response_class=StreamingResponse,
    responses=problems(404, 409)
    | {
        200: {
            "description": "One JSON object per line, for training with L_cap",
            "content": {NDJSON: {"example": '{"image":"n1/12.jpg","caption":"A teal …"}\n'}},
        }
    },
)
def export_captions(run_id: Id, engine: EngineDep, settings: SettingsDep) -> StreamingResponse:
    """Export the captions of a run's images, including captions of earlier runs."""
    _, lines = captions.caption_lines(engine, run_id, settings.image_roots)
    headers = {"Content-Disposition": 'attachment; filename="captions.jsonl"'}
    return StreamingResponse(lines, media_type=NDJSON, headers=headers)


@router.get(
    "/label-sets/{name}/labels.csv",
    summary="Export a label set as CSV",
    response_class=StreamingResponse,
    responses=problems(404) | _csv("Columns key,name,context; formulas escaped", _DUCKS),
)
def export_labels(name: str, session: ReadSession) -> StreamingResponse:
    """Export the labels of a label set, in the format of the upload."""
    label_set = label_service.get(session, name)
    return _download(label_service.to_csv(session, label_set), "labels.csv")


@router.get(
    "/label-sets/{name}/confusable.csv",
    summary="Export confusable labels as CSV",
    response_class=StreamingResponse,
    responses=problems(404) | _csv("One pair per line; formulas escaped", _CONFUSABLE),
)
def export_confusable(name: str, session: ReadSession) -> StreamingResponse:
    """Export the keys of confusable labels, most similar first."""
    return _download(csv_files.confusable_csv(session, name), "confusable.csv")


@router.get(
    "/export/reviews.csv",
    summary="Export reviews as CSV",
    response_class=StreamingResponse,
    responses=problems(404) | _csv("One review per line; formulas escaped", _REVIEWS),
)
def export_reviews(
    engine: EngineDep,
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Filter by label set")] = None,
) -> StreamingResponse:
    """Export who approved, rejected, locked or unlocked which text, when and why."""
    return _download(_lines(csv_files.reviews_csv, engine, session, label_set), "reviews.csv")


@router.get(
    "/export/generations.csv",
    summary="Export generations as CSV",
    response_class=StreamingResponse,
    responses=problems(404) | _csv("With their provenance; formulas escaped", _GENERATIONS),
)
def export_generations(
    engine: EngineDep,
    session: ReadSession,
    label_set: Annotated[str | None, Query(description="Filter by label set")] = None,
) -> StreamingResponse:
    """Export generations, one per line; lists and objects are JSON."""
    return _download(
        _lines(csv_files.generations_csv, engine, session, label_set), "generations.csv"
    )


@router.post(
    "/import/generations.csv",
    summary="Import generations from CSV",
    responses=problems(404, 413),
)
def import_generations(
    body: Annotated[bytes, Body(media_type="text/csv", examples=[_GENERATIONS])],
    session: WriteSession,
) -> Imported:
    """Import generations. Their prompts and label sets must exist."""
    return csv_files.import_generations_csv(session, body)


@router.post(
    "/import/release.csv",
    status_code=201,
    summary="Import a release from CSV",
    responses=problems(409, 413),
)
def import_release_csv(
    body: Annotated[bytes, Body(media_type="text/csv", examples=[_DUCKS])],
    session: WriteSession,
    name: Annotated[str, Query(description="Release name")],
    label_set: Annotated[str, Query(description="Label set; created if it does not exist")],
    author: str = "",
) -> ReleaseView:
    """Create a release from a CSV file. Equal texts have equal hashes."""
    row, _ = csv_files.import_release_csv(
        session, body, name=name, label_set=label_set, author=author
    )
    return release_service.view(session, row)


@router.post(
    "/import/lists",
    status_code=201,
    summary="Import lists of descriptors or sentences",
    responses=problems(409, 413),
)
def import_lists(
    body: Annotated[dict[str, list[str]], Body(examples=[{"teal": ["a green wing patch"]}])],
    session: WriteSession,
    label_set: Annotated[
        str, Query(description="Label set; created from the names if it does not exist")
    ],
    kind: Annotated[
        Literal["attributes", "sentences"],
        Query(description="attributes: classify-by-description; sentences: CuPL"),
    ],
    author: str = "",
    check_texts: Annotated[
        bool, Query(description="Validate texts; store invalid ones as rejected")
    ] = True,
) -> Imported:
    """Import a JSON object of class names and lists, as published for two other papers."""
    return class_lists.import_lists(
        session,
        body,
        label_set=label_set,
        kind=PromptKind(kind),
        author=author,
        check_texts=check_texts,
    )
