"""Pages for people, and the two questions that an operator's machine asks."""

from datetime import datetime
from importlib.resources import files
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text

from enrich_service.core.dependencies import ReadSession
from enrich_service.core.problems import problems
from enrich_service.jobs import service as job_service
from enrich_service.labels import service as label_service
from enrich_service.prompts import service as prompt_service
from enrich_service.releases import service as release_service

router = APIRouter()
static = StaticFiles(directory=str(files("enrich_service.web") / "static"))

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_SHOWN = 20


def _minute(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


_environment = Environment(
    loader=PackageLoader("enrich_service.web"), autoescape=True, undefined=StrictUndefined
)
_environment.filters["minute"] = _minute


class Health(BaseModel):
    """The service runs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


@router.get("/", include_in_schema=False, response_class=HTMLResponse)
def show_home(session: ReadSession) -> HTMLResponse:
    """What there is, the newest first."""
    page = _environment.get_template("index.html").render(
        label_sets=label_service.listing(session, limit=_SHOWN),
        prompts=prompt_service.listing(session, limit=_SHOWN),
        releases=release_service.listing(session, limit=_SHOWN),
        jobs=job_service.listing(session, limit=_SHOWN),
    )
    return HTMLResponse(page, headers=PAGE_HEADERS)


@router.get("/healthz", tags=["operation"], summary="Is the process alive?")
def check_alive() -> Health:
    """Answers while the process runs."""
    return Health()


@router.get("/readyz", tags=["operation"], summary="Can it serve requests?", responses=problems())
def check_ready(session: ReadSession) -> Health:
    """Answers ok if the database does."""
    session.execute(text("SELECT 1 FROM alembic_version"))
    return Health()
