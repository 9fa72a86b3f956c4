"""What people send: forms that only this service's own pages can have sent, and their fields.

Two fences against forms of other sites: `keys.gate` refuses what the browser says comes from
elsewhere, and each form repeats the secret of a cookie that only pages of this service can read.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, TypeVar

from fastapi import Depends, HTTPException, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from enrich_service.core.errors import InvalidInput
from enrich_service.web.page import PERSON_COOKIE, form_token

TOKEN_FIELD = "form_token"
_YEAR = 365 * 24 * 3600

Model = TypeVar("Model", bound=BaseModel)


class Form(dict[str, str]):
    """The fields of a form that were filled in, without blanks around them; files are apart."""

    files: Mapping[str, bytes]

    def ticked(self, name: str) -> bool:
        """Whether a box was ticked."""
        return name in self


async def _sent_form(request: Request) -> Form:
    token = form_token(request)
    async with request.form() as data:
        sent = data.get(TOKEN_FIELD)
        if (
            token is None
            or not isinstance(sent, str)
            or not secrets.compare_digest(token.encode(), sent.encode())
        ):
            raise HTTPException(
                403, "This form is too old or came from elsewhere: load its page again and resend."
            )
        form = Form(
            (name, value.strip())
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


def fitting(model: type[Model], values: Mapping[str, object]) -> Model:
    """`values` as a `model`. Raises InvalidInput that names the first field that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ": ".join(str(part).replace("_", " ") for part in first["loc"])
        raise InvalidInput(f"{where or 'The form'}: {first['msg']}") from error


def done(url: str, form: Form) -> RedirectResponse:
    """Go on to `url` after a form was accepted; who signed it is proposed the next time."""
    response = RedirectResponse(url, 303)
    author = form.get("author", "")[:200]
    if author and author.isascii() and author.isprintable():  # all that a cookie can hold
        response.set_cookie(PERSON_COOKIE, author, max_age=_YEAR, httponly=True, samesite="strict")
    return response
