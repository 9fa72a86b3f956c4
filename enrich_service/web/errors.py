"""Error pages for browsers, instead of problem documents."""

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
    """Show every problem document of `app` as a page, if a browser requests HTML outside of /v1."""
    for error_class, handler in list(app.exception_handlers.items()):
        if error_class is not WebSocketRequestValidationError:
            app.add_exception_handler(error_class, _page_handler(handler))


async def reject(request: Request, error: UserError) -> Response:
    """The response to a request that is rejected before it reaches a route."""
    return await run_in_threadpool(_as_page, request, problems.problem_response(error))


def _page_handler(
    handler: Callable[[Request, Any], Any],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        response: Response = await run_in_threadpool(handler, request, error)
        return await run_in_threadpool(_as_page, request, response)

    return handle


def _as_page(request: Request, response: Response) -> Response:
    """`response`, or an error page if it is a problem document and a browser requested HTML."""
    if not _wants_page(request) or response.media_type != problems.MEDIA_TYPE:
        return response
    problem = json.loads(bytes(response.body))
    error_page = page(request, "error.html", status=response.status_code, problem=problem)
    error_page.headers.update(_without_body_headers(response.headers))
    return error_page


def _without_body_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that are not about the body, such as WWW-Authenticate and Retry-After."""
    body_headers = ("content-type", "content-length")
    return {name: value for name, value in headers.items() if name not in body_headers}


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(
        "/v1/"
    )
