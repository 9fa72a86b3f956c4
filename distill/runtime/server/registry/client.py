"""REST client of the student registry of an enrichment service."""

import hashlib
from typing import Annotated, BinaryIO, Final
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, ValidationError

from distill.errors import ServiceError
from distill.service_http import connect, problem_detail

TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
MAX_DOWNLOAD: Final = 4 * 1024**3  # bytes of a classifier, packed


class Target(BaseModel):
    """The version that an alias points at, with size and SHA-256 of its zip file."""

    student: str
    alias: str
    version: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=MAX_DOWNLOAD)]

    @property
    def name(self) -> str:
        """Display name of the classifier of this version."""
        return f"{self.student}@{self.alias}, version {self.version}"


class RegistryClient:
    """Client for one student at the service at `url`, such as birds@production.

    The alias defaults to `production`.
    """

    def __init__(self, url: str, student: str, api_key: str | None) -> None:
        """Raises ServiceError if the address, the student or the API key is malformed."""
        self.student, _, alias = student.partition("@")
        self.alias = alias or "production"
        if not self.student:
            raise ServiceError(f"{student!r} has no student name: write it like birds@production")
        self._path = f"/v1/students/{quote(self.student, safe='')}"
        self._http, self.shown_url = connect(url, api_key, TIMEOUT)

    def resolve(self, etag: str | None) -> tuple[Target, str | None] | None:
        """The version that the alias points at and its ETag; None if it still has `etag`.

        Raises:
            ServiceError: the service does not answer, rejects the request, or has no such alias.
        """
        headers = {"If-None-Match": etag} if etag else {}
        path = f"{self._path}/aliases/{quote(self.alias, safe='')}"
        try:
            response = self._http.get(path, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code == 304:
            return None
        self._check(response)
        try:
            target = Target.model_validate_json(response.content)
        except ValidationError:
            raise ServiceError(
                f"{self.shown_url} does not answer like an enrichment service of this version: "
                "check the address, or update the older of the two programs"
            ) from None
        return target, response.headers.get("ETag")

    def download(self, target: Target, file: BinaryIO) -> None:
        """Write the zip file of a version to `file`.

        Raises:
            ServiceError: the service does not answer, rejects the request, or sends another file.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with self._http.stream(
                "GET", f"{self._path}/versions/{target.version}/classifier"
            ) as response:
                if response.status_code != 200:
                    response.read()
                self._check(response)
                for chunk in response.iter_bytes(1024**2):
                    size += len(chunk)
                    if size > target.bytes:
                        break
                    digest.update(chunk)
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if size != target.bytes or digest.hexdigest() != target.sha256:
            raise ServiceError(
                f"the classifier that {self.shown_url} sends is not the registered one: register "
                "the student again"
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _unreachable(self, error: httpx.HTTPError) -> ServiceError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ServiceError(f"the service at {self.shown_url} does not answer ({reason})")

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        detail = problem_detail(response)[:200]
        if response.status_code in (401, 403):
            raise ServiceError(
                f"the service at {self.shown_url} rejects the API key ({detail}): set "
                "ENRICH_API_KEY"
            )
        raise ServiceError(f"the service at {self.shown_url} answers: {detail}")
