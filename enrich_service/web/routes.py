"""The router of all pages, and the health probes."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from sqlalchemy import text

from enrich_service.core.rest.dependencies import ReadSession
from enrich_service.core.rest.problems import problems
from enrich_service.web import docs, home, runs, students, workers
from enrich_service.web.jobs import comparison as job_comparison
from enrich_service.web.jobs import diagnostics
from enrich_service.web.jobs import form as job_form
from enrich_service.web.jobs import pages as jobs
from enrich_service.web.page import static
from enrich_service.web.prompts import forms as prompt_forms
from enrich_service.web.prompts import pages as prompts
from enrich_service.web.prompts import playground
from enrich_service.web.texts import comparison, labels, releases

__all__ = ["router", "static"]

router = APIRouter()
for area in (
    home,
    labels,
    comparison,
    prompts,
    prompt_forms,
    playground,
    runs,
    releases,
    job_form,
    job_comparison,  # before jobs: /jobs/compare would match /jobs/{job_id}
    jobs,
    diagnostics,
    workers,
    students,
    docs,
):
    router.include_router(area.router, include_in_schema=False)


class Health(BaseModel):
    """The state of the service."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


@router.get("/healthz", tags=["operation"], summary="Is the process alive?")
def check_alive() -> Health:
    """Liveness probe."""
    return Health()


@router.get("/readyz", tags=["operation"], summary="Can it serve requests?", responses=problems())
def check_ready(session: ReadSession) -> Health:
    """Readiness probe: checks the database."""
    session.execute(text("SELECT 1 FROM alembic_version"))
    return Health()
