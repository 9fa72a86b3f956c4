"""Prometheus metrics of one server."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from distill.runtime.server.batching import Batcher
    from distill.runtime.server.live_classifier import LiveClassifier

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PHOTOS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of requests, photos and batches; gauges are read at each scrape."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "distill_http_requests",
            "Answered requests",
            ("method", "route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "distill_http_request_seconds",
            "Time until the response is sent",
            ("method", "route"),
            registry=registry,
            buckets=SECONDS,
        )
        self.photos = Counter(
            "distill_photos", "Photos by outcome", ("outcome",), registry=registry
        )
        self.batch_photos = Histogram(
            "distill_batch_photos",
            "Batch size of the image encoder, in photos",
            registry=registry,
            buckets=PHOTOS,
        )
        self.batch_seconds = Histogram(
            "distill_batch_seconds",
            "Time to encode a batch",
            registry=registry,
            buckets=SECONDS,
        )
        self._queue = Gauge(
            "distill_queue_photos", "Photos being decoded, queued or encoded", registry=registry
        )
        self._classes = Gauge("distill_classes", "Classes of the classifier", registry=registry)
        self._info = Gauge(
            "distill_classifier_info",
            "The classifier in use; always 1",
            ("classifier", "release", "student"),
            registry=registry,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the path template, to limit the number of series."""
        method, route = (method, route) if route else ("", "(none)")
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self, batcher: "Batcher", live: "LiveClassifier") -> bytes:
        """All metrics in the Prometheus text format."""
        self._queue.set(batcher.admitted)
        self._info.clear()
        if live.classifier is not None:
            manifest = live.classifier.manifest
            self._classes.set(len(manifest.classes))
            self._info.labels(live.name, manifest.release.hash, manifest.student.name).set(1)
        return generate_latest(self._registry)
