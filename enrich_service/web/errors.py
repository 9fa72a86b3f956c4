"""Error pages for browsers, in place of problem documents."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import WebSocketRequestValidationError
from fastapi.responses import Response

from enrich_service.core.errors import UserError
from enrich_service.core.rest import problems
from enrich_service.web.page import page


def install(app: FastAPI) -> None:
    """Turn every problem document of `app` into a page, for browsers and outside of /v1."""
    for kind, answer in list(app.exception_handlers.items()):
        if kind is not WebSocketRequestValidationError:
            app.add_exception_handler(kind, _as_page(answer))


async def answer(request: Request, error: UserError) -> Response:
    """The response to a request that is rejected before it reaches a route."""
    return await run_in_threadpool(_shown, request, problems.answer(error))


def _as_page(
    answer: Callable[[Request, Any], Any],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer_as_page(request: Request, error: Exception) -> Response:
        response: Response = await run_in_threadpool(answer, request, error)
        return await run_in_threadpool(_shown, request, response)

    return answer_as_page


def _shown(request: Request, response: Response) -> Response:
    """`response`, or an error page if it is a problem document and a browser asked for HTML."""
    if not _wants_page(request) or response.media_type != problems.MEDIA_TYPE:
        return response
    problem = json.loads(bytes(response.body))
    shown = page(request, "error.html", status=response.status_code, problem=problem)
    shown.headers.update(_told(response.headers))
    return shown


def _told(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a rejection: authentication challenge, time to retry."""
    about = ("content-type", "content-length")
    return {name: value for name, value in headers.items() if name not in about}


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(
        "/v1/"
    )
