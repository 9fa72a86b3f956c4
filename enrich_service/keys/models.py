"""Table of API keys."""

from datetime import datetime

from sqlmodel import Field, SQLModel

from enrich_service.core.caller import Scope
from enrich_service.core.database import UtcDateTime, enum_column, utcnow


class ApiKey(SQLModel, table=True):
    """What a caller shows. The key itself is told once and kept nowhere; never deleted."""

    __tablename__ = "api_key"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    prefix: str  # its first characters, by which people tell keys apart
    # SHA-256: a key is 256 random bits, which no slow hash makes harder to guess.
    hash: str = Field(unique=True)
    scope: Scope = Field(sa_type=enum_column(Scope))
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
