"""Rendering of templates, with one content security policy.

Values are escaped. Pages have no inline scripts or styles, load nothing from other sites, and are
readable without JavaScript.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from enrich_service.core import spreadsheet
from enrich_service.core.money import in_dollars
from enrich_service.core.rest import audit
from enrich_service.core.rest.caller import Caller

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
        "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
FORM_COOKIE = "enrich_form"
PERSON_COOKIE = "enrich_person"
_TOKEN = re.compile(r"[\w-]{32}")
_STATIC = files("enrich_service.web") / "static"

static = StaticFiles(directory=str(_STATIC))


def page(
    request: Request,
    template: str,
    *,
    status: int = 200,
    **values: Any,  # noqa: ANN401 - any
) -> HTMLResponse:
    """Render `template` with `values` as a page. A request that ends in an error is not audited."""
    if status >= HTTPStatus.BAD_REQUEST:
        audit.mark_audited(request)  # its session commits too, but without changes
    known = form_token(request)
    token = known or secrets.token_urlsafe(24)
    response = HTMLResponse(
        render(request, template, token=token, **values), status, headers=PAGE_HEADERS
    )
    if known is None:
        response.set_cookie(FORM_COOKIE, token, httponly=True, samesite="strict")
    return response


def render(
    request: Request,
    template: str,
    *,
    token: str | None = None,
    **values: Any,  # noqa: ANN401
) -> str:
    """Render `template` with `values` as text: a page or a part of one."""
    return _environment.get_template(template).render(
        path=request.url.path,
        query=request.query_params,
        token=token or form_token(request) or "",
        person=request.cookies.get(PERSON_COOKIE) or _key_name(request),
        **values,
    )


def _key_name(request: Request) -> str:
    """The name of the caller's key; empty without a key."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller.name if caller and caller.key_id is not None else ""


def csv_file(name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Response:
    """A CSV file for download."""
    return Response(
        "".join(spreadsheet.write(columns, rows)),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def form_token(request: Request) -> str | None:
    """The form token of this browser; None if it has none yet."""
    token = request.cookies.get(FORM_COOKIE, "")
    return token if _TOKEN.fullmatch(token) else None


@lru_cache
def _asset(name: str) -> str:
    """The URL of a static file with a hash of its content."""
    digest = hashlib.sha256((_STATIC / name).read_bytes()).hexdigest()[:8]
    return f"/static/{name}?{digest}"


def _minute(moment: datetime | None) -> Markup:
    if moment is None:
        return Markup("–")
    minute = f"{moment:%Y-%m-%d %H:%M}"
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S}", minute
    )


def _number(value: float | None) -> str:
    """Format an integer with thousands separators, or a float with four significant digits."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _figure(value: float | None) -> str:
    """Format a percentage or a time with one decimal."""
    return "–" if value is None else f"{value:,.1f}"


def _dollars(value: float | None) -> str:
    if value is None:
        return "unknown price"
    return f"${in_dollars(value)}".replace("$<", "<$")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {remainder:02} s" if minutes else f"{remainder} s"


def _size(count: int) -> str:
    """Format a number of bytes."""
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:,.0f} KiB" if count < 1024**2 else f"{count / 1024**2:,.1f} MiB"


def _sentence(error: object) -> str:
    """A message that begins with a capital letter."""
    text = str(error)
    return text[:1].upper() + text[1:]


def _with_changes(query: Mapping[str, str], **changes: object) -> Mapping[str, str]:
    """The query parameters with changes; None or an empty text removes a parameter."""
    changed = dict(query) | {name: str(value or "") for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value}


_environment = Environment(
    loader=PackageLoader("enrich_service.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "minute": _minute,
    "number": _number,
    "figure": _figure,
    "dollars": _dollars,
    "duration": _duration,
    "with_changes": _with_changes,
    "sentence": _sentence,
    "size": _size,
}
_environment.globals |= {"asset": _asset}
