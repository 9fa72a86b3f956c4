"""Problems as people read them: where a browser asked for a page, it gets one."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import WebSocketRequestValidationError
from fastapi.responses import Response

from enrich_service.core.problems import MEDIA_TYPE
from enrich_service.web.page import page


def install(app: FastAPI) -> None:
    """Turn every problem document of `app` into a page, for browsers and outside of /v1."""
    for kind, answer in list(app.exception_handlers.items()):
        if kind is not WebSocketRequestValidationError:
            app.add_exception_handler(kind, _as_page(answer))


def _as_page(
    answer: Callable[[Request, Any], Any],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer_as_page(request: Request, error: Exception) -> Response:
        response: Response = await run_in_threadpool(answer, request, error)
        if not _wants_page(request) or response.media_type != MEDIA_TYPE:
            return response
        problem = json.loads(bytes(response.body))
        return page(request, "error.html", status=response.status_code, problem=problem)

    return answer_as_page


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(
        "/v1/"
    )
