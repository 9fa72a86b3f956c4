"""Metrics over REST."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from enrich_service.core.rest.problems import problems
from enrich_service.operation.metrics import Metrics

router = APIRouter(tags=["operation"])

_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Prometheus' text format",
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "example": 'enrich_jobs{state="queued"} 3.0\n',
            }
        },
    }
}


@router.get(
    "/metrics", summary="Read the metrics", response_class=Response, responses=problems() | _TEXT
)
def read_metrics(request: Request) -> Response:
    """Prometheus metrics: requests, runs, tokens, cost, queue and latency."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
