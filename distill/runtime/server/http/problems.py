"""Every error of the REST interface is a problem document (RFC 9457)."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from contract.errors import error_message, location_path
from distill.errors import (
    ClassExists,
    ClassifierChanged,
    ClassifierError,
    ClassifierNotSaved,
    ServiceError,
    UnknownClass,
)

MEDIA_TYPE: Final = "application/problem+json"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})  # probes need no key
STATUS_OF: Final = {
    ClassExists: HTTPStatus.CONFLICT,
    ClassifierChanged: HTTPStatus.CONFLICT,
    UnknownClass: HTTPStatus.NOT_FOUND,
    ClassifierNotSaved: HTTPStatus.INSUFFICIENT_STORAGE,
    ClassifierError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ServiceError: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(BaseModel):
    """A problem document; `detail` says what is wrong and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The problem document for an HTTP status."""
    document = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(document.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can answer with these statuses, 422 or 500."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in sorted({*statuses, 422, 500})
    }


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document, and add them to its OpenAPI schema."""
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation_error)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _unexpected)
    for kind in STATUS_OF:
        app.add_exception_handler(kind, _user_error)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        _describe_keys(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_keys(document: dict[str, Any]) -> None:
    """Document the authentication of every protected operation, and its error responses."""
    document["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key from DISTILL_SERVE_KEY or --key-file, if the server has keys",
        }
    }
    for path, methods in document["paths"].items():
        for operation in methods.values() if path not in OPEN_PATHS else ():
            operation["security"] = [{"key": []}, {}]
            of_bodies = (400, 408, 413) if "requestBody" in operation else ()
            for status, response in problems(401, 403, *of_bodies).items():
                operation["responses"].setdefault(str(status), response)


def _user_error(_request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in STATUS_OF.items() if isinstance(error, kind))
    return problem(status, str(error))


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    title = HTTPStatus(error.status_code).phrase
    is_generic = not error.detail or error.detail == title
    detail = f"{title}: {request.method} {request.url.path}" if is_generic else error.detail
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return problem(error.status_code, detail, headers)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes with the path of `request`; Starlette gives those of one route."""
    return [
        method
        for method in ("GET", "POST", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
    lines = [f"{location_path(item['loc'])}: {error_message(item)}" for item in error.errors()]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return problem(422, lines[0] + more)


def _disconnected(_request: Request, _error: Exception) -> JSONResponse:
    # The client is gone, but this must not be logged as an internal error.
    return problem(400, "The client disconnected.")


def _unexpected(_request: Request, _error: Exception) -> JSONResponse:
    # Starlette raises the error again after the response, and uvicorn logs it.
    return problem(500, "Internal error, see the server log.")
