"""Table of API keys."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from enrich_service.core.rest.caller import Scope
from enrich_service.core.storage.database import UtcDateTime, enum_column, utcnow


class ApiKey(SQLModel, table=True):
    """An API key. The secret is returned once and not stored. Rows are never deleted."""

    __tablename__ = "api_key"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    prefix: str  # first characters of the key, to identify it
    # SHA-256: a key has 256 random bits, so a slow hash adds nothing.
    hash: str = Field(unique=True)
    scope: Scope = Field(sa_type=enum_column(Scope))
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
