"""Prometheus metrics: requests, counted in this process; all others, read from the database.

With several server processes, each reports its own requests, and all report the same others.
"""

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlmodel import Session, col, func, select

from contract import JobState
from enrich_service.core.storage.database import reading, utcnow
from enrich_service.generations.models import Generation, Run, RunState
from enrich_service.jobs.models import JobRow

LATEST = 1000  # newest generations used for the latency of language models
QUANTILES = (0.5, 0.95)


class Metrics:
    """The metrics of one application."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "enrich_http_requests",
            "Answered requests",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "enrich_http_request_seconds",
            "Time until the end of the response",
            ("method", "route"),
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._registry.register(_Stored(engine))

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the path template, to limit the number of series."""
        route = route or "(none)"
        self._requests.labels(method if route != "(none)" else "", route, status).inc()
        self._seconds.labels(method if route != "(none)" else "", route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Stored(Collector):
    """Metrics read from the database on every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """No metrics at registration: there may be no database yet."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Runs, tokens, cost, jobs, and the language models' latency."""
        with reading(self._engine) as session:
            yield from _runs(session)
            yield from _jobs(session)
            yield _latency(session)


def _runs(session: Session) -> Iterable[Metric]:
    runs = GaugeMetricFamily("enrich_runs", "Enrichment runs", labels=["state"])
    by_state = dict(session.exec(select(Run.state, func.count()).group_by(col(Run.state))).all())
    for state in RunState:
        runs.add_metric([state], by_state.get(state, 0))
    yield runs
    columns = (
        Run.calls,
        Run.prompt_tokens,
        Run.completion_tokens,
        Run.cost_usd,
        Run.accepted,
        Run.rejected,
    )
    sums = session.execute(sa.select(*(func.sum(column) for column in columns))).one()
    calls, prompt, completion, cost, accepted, rejected = (float(value or 0) for value in sums)
    yield CounterMetricFamily("enrich_run_calls", "Language-model calls of runs", value=calls)
    tokens = CounterMetricFamily("enrich_run_tokens", "Tokens of runs", labels=["kind"])
    tokens.add_metric(["prompt"], prompt)
    tokens.add_metric(["completion"], completion)
    yield tokens
    yield CounterMetricFamily("enrich_run_cost_usd", "Cost of runs with known prices", value=cost)
    texts = CounterMetricFamily("enrich_run_texts", "Checked answers of runs", labels=["status"])
    texts.add_metric(["accepted"], accepted)
    texts.add_metric(["rejected"], rejected)
    yield texts


def _jobs(session: Session) -> Iterable[Metric]:
    jobs = GaugeMetricFamily("enrich_jobs", "Training jobs", labels=["state"])
    by_state = dict(
        session.exec(select(JobRow.state, func.count()).group_by(col(JobRow.state))).all()
    )
    for state in JobState:
        jobs.add_metric([state], by_state.get(state, 0))
    yield jobs
    oldest = session.exec(
        select(JobRow.created_at)
        .where(JobRow.state == JobState.QUEUED)
        .order_by(col(JobRow.id))
        .limit(1)
    ).first()
    waited = (utcnow() - oldest).total_seconds() if oldest else 0.0
    yield GaugeMetricFamily(
        "enrich_job_queue_seconds", "Waiting time of the oldest queued job", value=waited
    )


def _latency(session: Session) -> Metric:
    latency = GaugeMetricFamily(
        "enrich_llm_latency_seconds",
        f"Time of a language-model call, over the last {LATEST} answers",
        labels=["quantile"],
    )
    times = sorted(
        value
        for value in session.exec(
            select(Generation.latency_ms).order_by(col(Generation.id).desc()).limit(LATEST)
        )
        if value is not None
    )
    for quantile in QUANTILES if times else ():
        index = min(len(times) - 1, int(quantile * len(times)))
        latency.add_metric([str(quantile)], times[index] / 1000)
    return latency
