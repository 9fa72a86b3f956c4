"""OpenTelemetry traces, if OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set.

FastAPI creates a span for each request. A language-model call is a child span of it, or a root span
in a run. Spans contain neither texts nor error messages, which may contain keys.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from enrich_service.core.errors import InvalidInput

VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer = trace.get_tracer("enrich_service")


def telemetry() -> TelemetryConfig:
    """FastAPI's telemetry configuration: one span per request if a collector is set.

    Raises InvalidInput if a collector is set but the OpenTelemetry SDK is not installed.
    """
    variable = next((name for name in VARIABLES if os.environ.get(name)), None)
    if variable and find_spec("opentelemetry.sdk") is None:
        raise InvalidInput(
            f"{variable} is set, but the OpenTelemetry SDK is not installed: install the extra "
            "otel, or unset the variable"
        )
    return {"auto_configure": True, "operation_spans": False, "metrics": False, "logs": False}


@contextmanager
def model_call(provider: str, model: str) -> Iterator[Span]:
    """A span of one language-model call, with OpenTelemetry's attributes for generative AI."""
    with _tracer.start_as_current_span(
        f"chat {model}",
        kind=SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
