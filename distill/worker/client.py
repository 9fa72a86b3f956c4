"""HTTP client of the worker for the service, with retries until a deadline."""

import json
import threading
import time
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from distill.errors import LeaseLost, RequestRefused, ServiceError, ServiceUnavailable
from distill.service_http import connect, problem_detail

CLAIM: Final = "/v1/jobs/claim"
RETRY_DEADLINE_S: Final = 600.0  # without an answer, before a worker gives up; at least 3 leases
MAX_BACKOFF_S: Final = 15.0

M = TypeVar("M", bound=BaseModel)


class ServiceClient:
    """HTTP client for the service.

    Retries end after `retry_deadline` seconds without an answer, or when `stop` is set.
    """

    def __init__(self, url: str, api_key: str | None, stop: threading.Event) -> None:
        """Raises ServiceError if the address or the API key is malformed."""
        self._http, self.shown_url = connect(url, api_key, httpx.Timeout(30.0, connect=10.0))
        self.retry_deadline = RETRY_DEADLINE_S
        self.stop = stop

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request with `body` as JSON, or with the bytes `content`.

        Raises:
            LeaseLost: the service answers 409, or does not have the job any more.
            ServiceUnavailable: it does not answer, or has an internal error.
            RequestRefused: it rejects this request.
            ServiceError: it rejects the API key.
        """
        if body is not None:
            content, headers = _to_json(body), {"Content-Type": "application/json"}
        try:
            response = self._http.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"the service at {self.shown_url} does not answer "
                f"({error or type(error).__name__}): check the address and that `enrich serve` is "
                "running"
            ) from None
        detail = problem_detail(response)
        match response.status_code:
            case 200 | 201 | 202 | 204:
                return response
            case 409:
                raise LeaseLost(detail)
            case 404 if path != CLAIM:
                raise LeaseLost(detail)
            case 401 | 403:
                raise ServiceError(
                    f"the service at {self.shown_url} rejected the API key ({detail}): set "
                    "ENRICH_API_KEY to a key for this worker"
                )
            case 408 | 429 | 500 | 502 | 503 | 504 | 507:
                raise ServiceUnavailable(f"the service at {self.shown_url} failed: {detail}")
        raise RequestRefused(f"the service at {self.shown_url} rejected {method} {path}: {detail}")

    def send_with_retries(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request until the service answers or the retry deadline has passed.

        If `stop` is set, the request is sent only once.

        Raises:
            LeaseLost, ServiceUnavailable, RequestRefused, ServiceError: as in `send`.
        """
        deadline, wait = time.monotonic() + self.retry_deadline, 0.25
        while True:
            try:
                return self.send(method, path, **content)
            except ServiceUnavailable:
                if self.stop.is_set() or time.monotonic() + wait > deadline:
                    raise
            self.stop.wait(wait)
            wait = min(2 * wait, MAX_BACKOFF_S)

    def parse(self, model: type[M], response: httpx.Response) -> M:
        """The body of a response as a `model`. Raises ServiceError if it does not match."""
        try:
            return model.model_validate_json(response.content)
        except ValidationError:
            raise ServiceError(
                f"{self.shown_url} does not answer like an enrichment service of this version: "
                "check the address, or update the older of the two programs"
            ) from None


def _to_json(body: object) -> bytes:
    """`body` as valid JSON: null for NaN and infinity, ? for lone surrogates.

    Events of a training can have both: diverged losses, and file names that are not UTF-8.
    """
    finite = json.loads(json.dumps(body), parse_constant=lambda _: None)
    return json.dumps(finite, ensure_ascii=False).encode(errors="replace")
