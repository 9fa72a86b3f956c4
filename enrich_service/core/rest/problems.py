"""Every error of the REST interface is a problem document (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from contract.errors import error_message, location_path
from enrich_service.core.errors import InvalidInput, UserError
from enrich_service.core.storage.database import storage_error

MEDIA_TYPE = "application/problem+json"
OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes, accessible without a key


class Problem(BaseModel):
    """An error; `detail` is the reason and what to do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no label set 'birds'. List them: `enrich labels list`, "
                    "GET /v1/label-sets.",
                }
            ]
        }
    )

    type: str = Field(default="about:blank", description="Kind of problem, as a URI")
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = Field(
        default=None, description="Validation errors of the request: location and message"
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may return these statuses, 422, 500, 503 or 507."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 422, 500, 503, 507})
    }


def _problem_response(
    status: int,
    title: str,
    detail: str,
    errors: list[dict[str, Any]] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(title=title, status=status, detail=detail, errors=errors)
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE
    )


def problem_response(error: UserError) -> JSONResponse:
    """The response to a user's error."""
    return _problem_response(error.status, error.title, str(error), headers=error.headers)


def _describe_keys(document: dict[str, Any]) -> None:
    """Document the authentication of every protected operation and its error responses."""
    document["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key of `enrich keys create`; not required until a key exists",
        }
    }
    for path, methods in document["paths"].items():
        if path in OPEN_PATHS:
            continue
        for operation in methods.values():
            operation["security"] = [{"key": []}, {}]
            body_statuses = (400, 413) if "requestBody" in operation else ()
            for status, response in problems(401, 403, 429, *body_statuses).items():
                operation["responses"].setdefault(str(status), response)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes with the path of `request`. Starlette lists those of one route."""
    return [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def install(app: FastAPI) -> None:  # noqa: C901 - one handler for each kind of error
    """Respond to every error of `app` with a problem document."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemas: dict[str, Any] = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        _describe_keys(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

    @app.exception_handler(UserError)
    def user_error(_request: Request, error: UserError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    def validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"at": location_path(item["loc"]), "message": error_message(item)}
            for item in error.errors()
        ]
        detail = f"{errors[0]['at']}: {errors[0]['message']}"
        if len(errors) > 1:
            detail += f" (and {len(errors) - 1} more)"
        return _problem_response(
            InvalidInput.status, InvalidInput.title, detail, errors=errors[:100]
        )

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail and error.detail != title else ""
        detail = detail or f"{title}: {request.method} {request.url.path}"
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_allowed_methods(request))
        elif detail == "There was an error parsing the body":  # FastAPI's fixed detail
            detail = (
                "The body does not match its Content-Type: send JSON in UTF-8, or a complete form."
            )
        return _problem_response(error.status_code, title, detail, headers=headers)

    @app.exception_handler(ClientDisconnect)
    def disconnected(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        # Never received, but prevents logging as an internal error.
        return _problem_response(400, "Bad request", "The client disconnected.")

    @app.exception_handler(UnicodeEncodeError)
    def lone_surrogate(request: Request, error: UnicodeEncodeError) -> JSONResponse:
        # JSON can contain half of a surrogate pair ("\ud800"); UTF-8 and the database cannot.
        return user_error(
            request,
            InvalidInput(f"The request contains a lone surrogate ({error.reason}): remove it."),
        )

    @app.exception_handler(DBAPIError)
    @app.exception_handler(OSError)
    def storage(request: Request, error: DBAPIError | OSError) -> JSONResponse:
        known = storage_error(error)
        if known is None:
            raise error
        return user_error(request, known)

    @app.exception_handler(Exception)
    def unexpected(request: Request, _error: Exception) -> JSONResponse:
        # Starlette re-raises the error after the response, which logs it.
        request_id = getattr(request.state, "request_id", "?")
        return _problem_response(
            500,
            "Internal server error",
            f"Internal error, see the server log (request {request_id}). Nothing was stored.",
        )
