"""The application: routes, middleware, background tasks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from contract.body_limit import BodyLimit
from distill.runtime.server.batching import Batcher
from distill.runtime.server.http import problems
from distill.runtime.server.http.access import Access
from distill.runtime.server.http.request_log import RequestLog
from distill.runtime.server.live_classifier import LiveClassifier
from distill.runtime.server.metrics import Metrics
from distill.runtime.server.routes import Server, router
from distill.runtime.server.settings import ServerSettings

STATIC: Final = files("distill.runtime.server") / "static"
Background = Callable[[LiveClassifier], Coroutine[Any, Any, None]]


def create_app(
    live: LiveClassifier, settings: ServerSettings, *, background: Background | None = None
) -> FastAPI:
    """The FastAPI application that serves the classifier `live`.

    `background` is a coroutine function that runs for the lifetime of the application, such as one
    that follows an alias and replaces the classifier.
    """
    metrics = Metrics()
    batcher = Batcher(
        max_batch=settings.max_batch,
        max_wait_s=settings.max_wait_ms / 1000,
        max_queue=settings.max_queue,
        metrics=metrics,
    )
    decoders = ThreadPoolExecutor(settings.threads, "decode")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run())]
        if background is not None:
            tasks.append(asyncio.create_task(background(live)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        batcher.close()
        decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Classifier",
        summary="Classifies photos; classes can be added and removed by their text.",
        version=version("enrich-distill"),
        lifespan=lifespan,
        openapi_tags=[{"name": name} for name in ("photos", "classes", "operation")],
        docs_url=None,  # these pages load scripts from another site
        redoc_url=None,
    )
    app.state.server = Server(settings, live, batcher, decoders, metrics)
    problems.install(app)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_bytes,
        too_large=lambda: HTTPException(
            413,
            f"The request body exceeds {settings.max_bytes} bytes: send fewer or smaller photos, "
            "or raise --max-bytes.",
        ),
        timeout_s=settings.body_timeout_s,
        stalled=lambda: HTTPException(
            408,
            f"The request body stalled for {settings.body_timeout_s:g} seconds: send it again.",
        ),
    )
    app.add_middleware(Access, keys=settings.keys, allow_remote=settings.allow_remote)
    app.add_middleware(RequestLog, metrics=metrics)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=str(STATIC)), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        """The web page."""
        return FileResponse(str(STATIC / "index.html"))

    return app
