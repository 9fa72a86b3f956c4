"""Forms of the pages: protection against cross-site requests, and parsing of their fields.

`keys.authentication` rejects requests that the browser marks as cross-site. In addition,
each form contains a token that must match a cookie of this service.
"""

import secrets
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from fastapi import Depends, HTTPException, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from contract import first_error_line
from enrich_service.core.errors import InvalidInput
from enrich_service.web.page import PERSON_COOKIE, form_token

TOKEN_FIELD = "form_token"
_YEAR = 365 * 24 * 3600

Model = TypeVar("Model", bound=BaseModel)


class Form(dict[str, str]):
    """The non-empty fields of a form, stripped; uploaded files are in `files`."""

    files: Mapping[str, bytes]

    def is_checked(self, name: str) -> bool:
        """Whether a checkbox is checked."""
        return name in self


async def _sent_form(request: Request) -> Form:
    token = form_token(request)
    async with request.form() as data:
        sent_token = data.get(TOKEN_FIELD)
        if (
            token is None
            or not isinstance(sent_token, str)
            or not secrets.compare_digest(token.encode(), sent_token.encode())
        ):
            raise HTTPException(
                403,
                "This form has expired or came from another site: reload its page and resubmit.",
            )
        form = Form(
            (name, value.strip().replace("\r\n", "\n"))  # browsers send CRLF
            for name, value in data.items()
            if isinstance(value, str) and value.strip() and name != TOKEN_FIELD
        )
        form.files = {
            name: await value.read()
            for name, value in data.items()
            if isinstance(value, UploadFile) and value.filename
        }
    return form


SentForm = Annotated[Form, Depends(_sent_form)]


def without_none(annotation: object) -> object:
    """The type `T` of an annotation `T` or `T | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def field_values(model: type[BaseModel], form: Form, prefix: str = "") -> dict[str, Any]:
    """The values of a form for the fields of `model`, to be validated.

    A field of a nested model is named `outer.inner` in the form. An unchecked checkbox is
    False. The text of an option becomes the value of the field's `Literal`, which may be a number.
    Empty fields are left out, so that they get their default.
    """
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        annotation, key = without_none(info.annotation), f"{prefix}{name}"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            values[name] = field_values(annotation, form, f"{key}.")
        elif annotation is bool:
            values[name] = form.is_checked(key)
        elif key in form:
            choices = get_args(annotation) if get_origin(annotation) is Literal else ()
            by_text = {str(choice): choice for choice in choices}
            values[name] = by_text.get(form[key], form[key])
    return values


def parse_form(model: type[Model], values: Mapping[str, object]) -> Model:
    """Validate `values` as a `model`. Raises InvalidInput that names the first invalid field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(first_error_line(error, "The form")) from error


def redirect(url: str, form: Form) -> RedirectResponse:
    """Redirect to `url` after a form was accepted, and remember its author in a cookie."""
    response = RedirectResponse(url, 303)
    author = form.get("author", "")[:200]
    if author and author.isascii() and author.isprintable():  # as cookies require
        response.set_cookie(PERSON_COOKIE, author, max_age=_YEAR, httponly=True, samesite="strict")
    return response
