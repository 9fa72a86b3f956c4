"""Generations, edits and reviews over REST."""

from typing import Annotated

from fastapi import APIRouter, Query

from enrich_service.core.rest.dependencies import Id, ReadSession, WriteSession
from enrich_service.core.rest.problems import problems
from enrich_service.generations import edits, reviews, service
from enrich_service.generations.schemas import (
    GenerationDetail,
    GenerationFilter,
    GenerationPage,
    LabelTextIn,
    ReviewIn,
    ReviewView,
    TextIn,
)
from enrich_service.generations.store import get_generation

router = APIRouter(prefix="/v1", tags=["enrichment"])


@router.get("/generations", summary="List generations", responses=problems(404))
def list_generations(
    session: ReadSession, filters: Annotated[GenerationFilter, Query()]
) -> GenerationPage:
    """List generations, newest first, including rejected and failed ones."""
    return service.list_generations(session, filters)


@router.get("/generations/{generation_id}", summary="Show a generation", responses=problems(404))
def show_generation(generation_id: Id, session: ReadSession) -> GenerationDetail:
    """Show a generation with its full provenance: messages, reply, model, usage, cost."""
    return service.generation_detail(session, get_generation(session, generation_id))


@router.post(
    "/generations/{generation_id}/edits",
    status_code=201,
    summary="Edit a text",
    responses=problems(404, 409),
)
def edit_generation(generation_id: Id, body: TextIn, session: WriteSession) -> GenerationDetail:
    """Store a person's edit of a generation; both are kept, and the edit takes precedence."""
    edit = edits.edit_generation(session, generation_id, body)
    return service.generation_detail(session, edit)


@router.post("/reviews", status_code=201, summary="Review texts", responses=problems(404, 409))
def review_texts(body: ReviewIn, session: WriteSession) -> list[ReviewView]:
    """Approve, reject, lock or unlock texts; all of them or none. Author and time are logged.

    No release contains a rejected text; every release contains a locked one, which cannot be
    edited.
    """
    written = reviews.review(
        session, body.generations, body.action, reason=body.reason, author=body.author
    )
    return [reviews.view(review) for review in written]


@router.get(
    "/generations/{generation_id}/reviews",
    summary="List reviews of a text",
    responses=problems(404),
)
def list_reviews(generation_id: Id, session: ReadSession) -> list[ReviewView]:
    """List the reviews of a text, newest first."""
    return reviews.log_of(session, generation_id)


@router.post(
    "/labels/{label_id}/texts",
    status_code=201,
    summary="Write a text for a label",
    responses=problems(404, 409),
)
def write_text(label_id: Id, body: LabelTextIn, session: WriteSession) -> GenerationDetail:
    """Store a person's text for a label of a label set."""
    edit = edits.write_text(session, label_id, body)
    return service.generation_detail(session, edit)
