"""The student registry of an enrichment service, over REST."""

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
    """The version that an alias points at, with length and SHA-256 of its zip file."""

    student: str
    alias: str
    version: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=MAX_DOWNLOAD)]

    @property
    def name(self) -> str:
        """What a classifier of this version is called."""
        return f"{self.student}@{self.alias}, version {self.version}"


class RegistryClient:
    """Asks the service at `url` about `student`, a name like birds@production.

    Without an alias, `production` is meant.
    """

    def __init__(self, url: str, student: str, api_key: str | None) -> None:
        """Raises ServiceError for an address, a student or an API key that cannot be one."""
        self.student, _, alias = student.partition("@")
        self.alias = alias or "production"
        if not self.student:
            raise ServiceError(f"{student!r} names no student: write it like birds@production")
        self._path = f"/v1/students/{quote(self.student, safe='')}"
        self._http, self.shown_url = connect(url, api_key, TIMEOUT)

    def resolve(self, etag: str | None) -> tuple[Target, str | None] | None:
        """The version that the alias points at and the ETag; None if `etag` is still right.

        Raises:
            ServiceError: the service does not answer or refuses, or there is no such alias.
        """
        headers = {"If-None-Match": etag} if etag else {}
        path = f"{self._path}/aliases/{quote(self.alias, safe='')}"
        try:
            response = self._http.get(path, headers=headers)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        if response.status_code == 304:
            return None
        self._check(response)
        try:
            target = Target.model_validate_json(response.content)
        except ValidationError:
            raise ServiceError(
                f"{self.shown_url} answers, but not as an enrichment service of this version: "
                "check the address, or update the older of the two"
            ) from None
        return target, response.headers.get("ETag")

    def download(self, target: Target, file: BinaryIO) -> None:
        """Write the zip file of a version to `file`.

        Raises:
            ServiceError: the service does not answer, refuses, or sends another file.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with self._http.stream(
                "GET", f"{self._path}/versions/{target.version}/classifier"
            ) as response:
                if response.status_code != 200:
                    response.read()
                self._check(response)
                for piece in response.iter_bytes(1024**2):
                    size += len(piece)
                    if size > target.bytes:
                        break
                    digest.update(piece)
                    file.write(piece)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        if size != target.bytes or digest.hexdigest() != target.sha256:
            raise ServiceError(
                f"the classifier that {self.shown_url} sends is not the one that it registered: "
                "register the student again"
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _silent(self, error: httpx.HTTPError) -> ServiceError:
        said = " ".join(str(error).split()) or type(error).__name__
        return ServiceError(f"the service at {self.shown_url} does not answer ({said})")

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
