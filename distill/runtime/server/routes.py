"""The routes: photos, classes, probes, metrics."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from distill.errors import UnreadableImages
from distill.runtime.classifier import Classifier
from distill.runtime.manifest import ClassEntry
from distill.runtime.server.batching import Admission, Batcher
from distill.runtime.server.http.problems import problems
from distill.runtime.server.live_classifier import LiveClassifier
from distill.runtime.server.metrics import Metrics
from distill.runtime.server.schemas import (
    CandidateOut,
    ClassCreate,
    Classes,
    Classified,
    Health,
    PhotoOut,
    Readiness,
    ReasonsOut,
)
from distill.runtime.server.settings import ServerSettings
from distill.runtime.server.uploads import BODY, Upload, decode, read_uploads
from distill.runtime.text_encoder import Features

router = APIRouter()
T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """Shared state of the routes of one application."""

    settings: ServerSettings
    live: LiveClassifier
    batcher: Batcher
    decoders: ThreadPoolExecutor
    metrics: Metrics


@dataclass(frozen=True)
class Wanted:
    """What to return for each photo: the number of classes, and whether to give reasons."""

    top: int
    reasons: bool


async def _server(request: Request) -> Server:  # async, so that FastAPI starts no thread for it
    server: Server = request.app.state.server
    return server


ServerDep = Annotated[Server, Depends(_server)]


@router.post(
    "/v1/classify",
    tags=["photos"],
    summary="Classify photos",
    openapi_extra=BODY,
    responses=problems(400, 409, 413, 503),
)
async def classify(
    request: Request,
    server: ServerDep,
    top: Annotated[int, Query(ge=1, le=1000, description="Number of classes per photo")] = 5,
    *,
    reasons: Annotated[bool, Query(description="Give reasons for each prediction")] = False,
) -> Classified:
    """The likeliest classes of each photo, best first.

    The body is one image, or a multipart form with one or several files. A photo that cannot be
    read has `error` set; if it is the only photo of the request, the response is a 422.
    """
    uploads = await read_uploads(request, server.settings.max_photos)
    name, classifier = server.live.name, server.live.current()
    if not classifier.classes:
        raise HTTPException(409, "The classifier has no class: add one with POST /v1/classes.")
    wanted = Wanted(top, reasons)
    with server.batcher.admit(len(uploads)) as admission:
        photos = await _unless_disconnected(
            request,
            _gather(
                [_classify(upload, classifier, admission, server, wanted) for upload in uploads]
            ),
        )
    if len(photos) == 1 and photos[0].error is not None:
        raise HTTPException(422, f"The photo cannot be read: {photos[0].error}.")
    return Classified(classifier=name, photos=photos)


async def _classify(
    upload: Upload, classifier: Classifier, admission: Admission, server: Server, wanted: Wanted
) -> PhotoOut:
    try:
        features = await _encode(upload, classifier, admission, server)
    except UnreadableImages as error:
        server.metrics.photos.labels("unreadable").inc()
        reason = error.images[0].removeprefix(f"{upload.name} (").removesuffix(")")
        return PhotoOut(photo=upload.name, error=reason)
    (prediction,) = classifier.rank(features[None], wanted.top, reasons=wanted.reasons)
    server.metrics.photos.labels("unknown" if prediction.unknown else "classified").inc()
    return PhotoOut(
        photo=upload.name,
        candidates=[CandidateOut.model_validate(candidate) for candidate in prediction.candidates],
        unknown=prediction.unknown,
        reasons=prediction.reasons and ReasonsOut.model_validate(prediction.reasons),
    )


async def _encode(
    upload: Upload, classifier: Classifier, admission: Admission, server: Server
) -> Features:
    encoder, limit = classifier.image_encoder, server.settings.max_pixels
    loop = asyncio.get_running_loop()
    try:
        pixels = await loop.run_in_executor(server.decoders, decode, upload, encoder, limit)
    except UnreadableImages:
        admission.drop()
        raise
    return await admission.encode(encoder, pixels)


async def _gather(photos: list[Coroutine[Any, Any, PhotoOut]]) -> list[PhotoOut]:
    return list(await asyncio.gather(*photos))


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    result = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((result, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        result.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get("/v1/classes", tags=["classes"], summary="List the classes", responses=problems(503))
async def list_classes(server: ServerDep) -> Classes:
    """All classes, in the order of the classifier."""
    classifier = server.live.current()
    return Classes(
        classifier=server.live.name,
        read_only=server.live.read_only is not None,
        classes=list(classifier.classes),
    )


@router.post(
    "/v1/classes",
    tags=["classes"],
    summary="Add a class",
    status_code=201,
    responses=problems(409, 503, 507),
)
async def add_class(new: ClassCreate, server: ServerDep) -> ClassEntry:
    """Add a class with a name and a text; it is saved before the response."""
    return await server.live.add(new)


@router.delete(
    "/v1/classes/{name:path}",
    tags=["classes"],
    summary="Remove a class",
    status_code=204,
    responses=problems(404, 409, 503, 507),
)
async def remove_class(
    name: Annotated[str, Path(description="Name or key of the class", max_length=200)],
    server: ServerDep,
) -> None:
    """Remove a class; the change is saved before the response."""
    await server.live.remove(name)


@router.get("/healthz", tags=["operation"], summary="Is the process alive?")
async def check_alive() -> Health:
    """Liveness probe."""
    return Health()


@router.get(
    "/readyz", tags=["operation"], summary="Can it classify photos?", responses=problems(503)
)
async def check_ready(server: ServerDep) -> Readiness:
    """Readiness probe: a classifier is loaded. `detail` says why a newer one is not."""
    classifier = server.live.current()
    return Readiness(
        classifier=server.live.name,
        classes=len(classifier.classes),
        detail=server.live.problem,
    )


@router.get(
    "/metrics",
    tags=["operation"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
)
async def show_metrics(server: ServerDep) -> Response:
    """Requests, photos, batches, queue and classes, in the Prometheus text format."""
    text = server.metrics.text(server.batcher, server.live)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
