"""The web application: routers, middleware, and its background tasks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

import enrich_service.exchange.routes
import enrich_service.generations.routes
import enrich_service.jobs.routes
import enrich_service.jobs.worker_routes
import enrich_service.keys.routes
import enrich_service.labels.routes
import enrich_service.operation.routes
import enrich_service.prompts.routes
import enrich_service.releases.routes
import enrich_service.runs.routes
import enrich_service.students.routes
import enrich_service.trials.routes
import enrich_service.web.errors
import enrich_service.web.routes
from contract.body_limit import BodyLimit
from enrich_service.core.clock import Clock
from enrich_service.core.rest import problems
from enrich_service.core.rest.traces import telemetry
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine
from enrich_service.core.storage.prestart import prestart
from enrich_service.keys.authentication import Authentication
from enrich_service.operation.metrics import Metrics
from enrich_service.operation.request_log import Requests
from enrich_service.releases.body_cache import BodyCache
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.scheduling.scheduler import RunScheduler

# In the order of /docs.
TAGS: Final = (
    "label sets",
    "prompts",
    "enrichment",
    "releases",
    "import and export",
    "jobs",
    "students",
    "trials",
    "keys",
    "operation",
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the application. `settings` default to those of the environment.

    On startup it migrates the database, then starts the background tasks.
    """
    settings = settings or Settings()
    engine = make_engine(settings.sqlalchemy_url)
    enricher = Enricher(engine, settings)
    runs = RunScheduler(engine, enricher)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        prestart(engine, settings)
        runs.start()
        yield
        await runs.stop()
        await enricher.aclose()
        engine.dispose()

    app = FastAPI(
        title="Enrichment service",
        summary="Descriptions of classes by language models, releases of them, and training jobs.",
        version=version("enrich-distill"),
        lifespan=lifespan,
        openapi_tags=[{"name": name} for name in TAGS],
        docs_url=None,  # served by web.docs, without scripts of other sites
        redoc_url=None,
        telemetry=telemetry(),
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.clock = Clock()
    app.state.enricher = enricher
    app.state.runs = runs
    app.state.release_bodies = BodyCache(engine)
    app.state.metrics = Metrics(engine)
    problems.install(app)
    enrich_service.web.errors.install(app)
    limit = settings.max_body_bytes
    app.add_middleware(
        BodyLimit,
        max_bytes=limit,
        too_large=lambda: HTTPException(
            413, f"The request body exceeds {limit} bytes (ENRICH_MAX_BODY_BYTES)."
        ),
    )
    app.add_middleware(
        Authentication, engine=engine, settings=settings, reject=enrich_service.web.errors.reject
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        )
    app.add_middleware(Requests, metrics=app.state.metrics)
    for capability in (
        enrich_service.releases,  # first: read most often, and routes are matched in order
        enrich_service.labels,
        enrich_service.prompts,
        enrich_service.runs,
        enrich_service.generations,
        enrich_service.exchange,
        enrich_service.jobs,
        enrich_service.students,
        enrich_service.trials,
        enrich_service.keys,
        enrich_service.operation,
        enrich_service.web,
    ):
        app.include_router(capability.routes.router)
    app.include_router(enrich_service.jobs.worker_routes.router)
    app.mount("/static", enrich_service.web.routes.static, name="static")
    return app
