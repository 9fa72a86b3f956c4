"""The web application: what it is made of, and what runs while it lives."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

import enrich_service.enrichment.routes
import enrich_service.jobs.routes
import enrich_service.labels.routes
import enrich_service.prompts.routes
import enrich_service.releases.routes
from enrich_service.core import problems
from enrich_service.core.database import make_engine
from enrich_service.core.prestart import prestart
from enrich_service.core.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for `settings` (by default: those of the environment).

    Its start brings the database up to date; then background work begins.
    """
    settings = settings or Settings()
    engine = make_engine(settings.sqlalchemy_url)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        prestart(engine, settings)
        yield
        engine.dispose()

    app = FastAPI(
        title="Enrichment service",
        summary="Class names in; versioned, released, attribute-rich texts and training jobs out.",
        version=version("enrich-distill"),
        lifespan=lifespan,
        max_body_size=settings.max_body_bytes,
    )
    app.state.settings = settings
    app.state.engine = engine
    problems.install(app)
    for capability in (
        enrich_service.labels,
        enrich_service.prompts,
        enrich_service.enrichment,
        enrich_service.releases,
        enrich_service.jobs,
    ):
        app.include_router(capability.routes.router)
    return app
