"""Label sets over REST."""

from typing import Annotated

from fastapi import APIRouter, File, Form, Query

from enrich_service.core.dependencies import ReadSession, WriteSession
from enrich_service.core.problems import problems
from enrich_service.labels import service
from enrich_service.labels.schemas import Confusable, LabelPage, LabelSetCreate, LabelSetView

router = APIRouter(prefix="/v1/label-sets", tags=["label sets"])


@router.post("", status_code=201, summary="Create a label set", responses=problems(409, 413))
def create_label_set(body: LabelSetCreate, session: WriteSession) -> LabelSetView:
    """Create a label set with up to 100,000 labels; one bad label, and nothing is stored."""
    return service.view(session, service.create(session, body.name, body.labels))


@router.post(
    "/upload",
    status_code=201,
    summary="Create a label set from a CSV file",
    responses=problems(409, 413),
)
def upload_label_set(
    name: Annotated[str, Form(examples=["ducks"])],
    file: Annotated[
        bytes,
        File(
            description="CSV in UTF-8 with the columns key,name,context (only name is a must)",
            examples=["key,name,context\nn01847000,harlequin duck,a bird species\n"],
        ),
    ],
    session: WriteSession,
) -> LabelSetView:
    """Create a label set from a CSV file; one bad line, and nothing is stored."""
    return service.view(session, service.create(session, name, service.from_csv(file)))


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
    """Show a label set; its labels have their own page."""
    return service.view(session, service.get(session, name))


@router.get("/{name}/labels", summary="List labels", responses=problems(404))
def list_labels(
    name: str,
    session: ReadSession,
    search: Annotated[str, Query(max_length=300, description="In name or key")] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> LabelPage:
    """List the labels of a label set in order, a page at a time."""
    label_set = service.get(session, name)
    return service.page(session, label_set, search=search, limit=limit, offset=offset)


@router.put("/{name}/confusable", summary="Say which labels are confused", responses=problems(404))
def put_confusable(name: str, body: Confusable, session: WriteSession) -> Confusable:
    """Write down, nearest first, which labels each of the given ones is easily taken for.

    Prompts read their names as the variable `labels`. In place of what was known of those labels;
    of all others nothing changes.
    """
    service.set_confusable(session, service.get(session, name), body.confusable)
    return body


@router.post(
    "/{name}/confusable/from-names",
    summary="Guess from names which labels are confused",
    responses=problems(404),
)
def guess_confusable(name: str, session: WriteSession) -> Confusable:
    """Take labels whose names end with the same words ("common teal", "cinnamon teal") for alike.

    Only for labels of which nothing is known yet.
    """
    return service.guess_confusable(session, service.get(session, name))


@router.delete(
    "/{name}", status_code=204, summary="Delete a label set", responses=problems(404, 409)
)
def delete_label_set(name: str, session: WriteSession) -> None:
    """Delete a label set that no run, text or release uses."""
    service.remove(session, service.get(session, name))
