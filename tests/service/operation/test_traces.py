"""Traces: spans of requests and of language-model calls, as a collector gets them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from enrich_service.core.errors import InvalidInput
from enrich_service.core.rest import traces
from tests.llm_server import Answer, LlmServer
from tests.service.operation.test_observability import serving

service_pb2 = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="the extra `otel` is not installed",
)


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP collector: its address, and the bodies of what it was sent."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()
    thread.join()


def spans_of(bodies, name):
    return [
        span
        for body in bodies
        for resource in service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        if span.name == name
    ]


def attributes(span):
    return {
        one.key: one.value.string_value or one.value.int_value or None for one in span.attributes
    }


def test_a_collector_gets_a_span_of_each_request_and_of_each_call_in_it(tmp_path, migrated):
    migrated(tmp_path / "data")
    with LlmServer() as model, collector() as (address, bodies):
        model.script("smew", Answer(400, body='{"error": {"message": "the key planted-key"}}'))
        with serving(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OPENAI_BASE_URL=model.url,
            OPENAI_API_KEY="planted-key",
            ENRICH_LLM_MODEL="small",
        ) as client:
            # In turn: before a first answer, a refusal may be one of the answer's format.
            (described,) = client.post("/v1/describe", json={"labels": ["mallard"]}).json()
            (failed,) = client.post("/v1/describe", json={"labels": ["smew"]}).json()
    assert (described["status"], failed["status"]) == ("accepted", "failed")

    requests, calls = spans_of(bodies, "POST /v1/describe"), spans_of(bodies, "chat small")
    assert {attributes(request)["http.route"] for request in requests} == {"/v1/describe"}
    assert [call.trace_id for call in calls] == [request.trace_id for request in requests]
    answered, refused = calls
    found = attributes(answered)
    assert found["gen_ai.response.model"] == "small-2026-01-01"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (50, 20)
    assert attributes(refused)["error.type"] == "BadRequestError"
    assert not refused.events and not refused.status.message
    told = b"".join(bodies)
    for secret in ("planted-key", "mallard", described["text"]):
        assert secret.encode() not in told


def test_without_what_sends_traces_the_service_says_so_and_does_not_start(monkeypatch):
    monkeypatch.setattr(traces, "find_spec", lambda _: None)
    assert traces.telemetry()["auto_configure"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(InvalidInput, match="OTEL_EXPORTER_OTLP_ENDPOINT is set, .* extra otel"):
        traces.telemetry()
