"""API schema of keys and the audit log."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from enrich_service.core.rest.caller import Scope

_WHEN = "2026-01-02T03:04:05Z"
_KEY: dict[str, Any] = {
    "id": 1,
    "name": "gpu-1",
    "prefix": "enrich_f3Ab9x",
    "scope": "write",
    "created_at": _WHEN,
    "expires_at": "2027-01-02T03:04:05Z",
    "revoked_at": None,
    "last_used_at": _WHEN,
}


def _example(**example: object) -> dict[str, Any]:
    return {"examples": [example]}


class KeyCreate(BaseModel):
    """A new key."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=_example(name="gpu-1", scope="write", expires_at="2027-01-02T03:04:05Z"),
    )

    name: Annotated[str, Field(description="Name of the key's owner, shown in the audit log")]
    scope: Annotated[Scope, Field(description="Permissions: read < write < admin")] = Scope.WRITE
    expires_at: Annotated[AwareDatetime | None, Field(description="Null: never expires")] = None


class KeyView(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(json_schema_extra=_example(**_KEY))

    id: int
    name: str
    prefix: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: Annotated[datetime | None, Field(description="Accurate to one minute")]


class KeyCreated(KeyView):
    """A new key with its secret, which is returned only once."""

    model_config = ConfigDict(json_schema_extra=_example(**_KEY, key="enrich_f3Ab9x…"))

    key: str


class AuditView(BaseModel):
    """One entry of the audit log."""

    model_config = ConfigDict(
        json_schema_extra=_example(
            id=7,
            at=_WHEN,
            key_id=1,
            who="gpu-1",
            action="cancel_job",
            route="POST /v1/jobs/{job_id}/cancel",
            object="/v1/jobs/7/cancel",
            request_id="5f0c6c1e9a3b4d21",
        )
    )

    id: int
    at: datetime
    key_id: int | None
    who: str
    action: str
    route: str
    object: str
    request_id: str | None
