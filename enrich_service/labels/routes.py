"""Label sets over REST."""

from typing import Annotated

from fastapi import APIRouter, File, Form, Query

from enrich_service.core.rest.dependencies import ReadSession, WriteSession
from enrich_service.core.rest.problems import problems
from enrich_service.labels import files, service
from enrich_service.labels.schemas import Confusable, LabelPage, LabelSetCreate, LabelSetView

router = APIRouter(prefix="/v1/label-sets", tags=["label sets"])


@router.post("", status_code=201, summary="Create a label set", responses=problems(409, 413))
def create_label_set(body: LabelSetCreate, session: WriteSession) -> LabelSetView:
    """Create a label set with up to 100,000 labels. Nothing is stored if a label is invalid."""
    return service.view(session, service.create(session, body.name, body.labels))


@router.post(
    "/upload",
    status_code=201,
    summary="Create a label set from a file",
    responses=problems(409, 413),
)
def upload_label_set(
    name: Annotated[str, Form(examples=["ducks"])],
    file: Annotated[
        bytes,
        File(
            description="CSV or TSV with the columns key,name,context (only name is required), or "
            "one name per line; in UTF-8, UTF-16 or Windows-1252",
            examples=["key,name,context\nn01847000,harlequin duck,a bird species\n"],
        ),
    ],
    session: WriteSession,
) -> LabelSetView:
    """Create a label set from a table or a list of names. Nothing is stored if a row is invalid."""
    return service.view(session, service.create(session, name, *files.from_table(file)))


@router.get("", summary="List label sets", responses=problems())
def list_label_sets(
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[LabelSetView]:
    """List label sets by name."""
    return service.listing(session, limit=limit, offset=offset)


@router.get("/{name}", summary="Show a label set", responses=problems(404))
def show_label_set(name: str, session: ReadSession) -> LabelSetView:
    """Show a label set without its labels."""
    return service.view(session, service.get(session, name))


@router.get("/{name}/labels", summary="List labels", responses=problems(404))
def list_labels(
    name: str,
    session: ReadSession,
    search: Annotated[str, Query(max_length=300, description="Filter by name or key")] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> LabelPage:
    """List the labels of a label set in order, one page at a time."""
    label_set = service.get(session, name)
    return service.page(session, label_set, search=search, limit=limit, offset=offset)


@router.put("/{name}/confusable", summary="Set confusable labels", responses=problems(404))
def put_confusable(name: str, body: Confusable, session: WriteSession) -> Confusable:
    """Set the labels that each given label is easily confused with, most similar first.

    Replaces the lists of the given labels; other labels are unchanged. Prompts read the names as
    the variable `labels`.
    """
    service.set_confusable(session, service.get(session, name), body.confusable)
    return body


@router.post(
    "/{name}/confusable/from-names",
    summary="Derive confusable labels from names",
    responses=problems(404),
)
def guess_confusable(name: str, session: WriteSession) -> Confusable:
    """Mark labels whose names end in the same words ("common teal", "cinnamon teal") as confusable.

    Labels that already have a list are unchanged.
    """
    return service.guess_confusable(session, service.get(session, name))


@router.delete(
    "/{name}", status_code=204, summary="Delete a label set", responses=problems(404, 409)
)
def delete_label_set(name: str, session: WriteSession) -> None:
    """Delete a label set. 409 if a run, text or release uses it."""
    service.remove(session, service.get(session, name))
