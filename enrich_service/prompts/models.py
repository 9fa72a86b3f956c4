"""Tables of prompts, their immutable versions, and the aliases that move between them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlmodel import Field, SQLModel

from enrich_service.core.storage.database import UtcDateTime, utcnow


class Prompt(SQLModel, table=True):
    """A named template. `kind` is the release field that its answers fill."""

    __tablename__ = "prompt"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    kind: str  # a PromptKind
    summary: str = ""
    archived_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class PromptTag(SQLModel, table=True):
    """A search tag of a prompt, not part of its versions."""

    __tablename__ = "prompt_tag"

    prompt_id: int = Field(foreign_key="prompt.id", primary_key=True)
    tag: str = Field(primary_key=True)


class PromptVersion(SQLModel, table=True):
    """An immutable version of a prompt; `content_hash` covers its content."""

    __tablename__ = "prompt_version"
    __table_args__ = (UniqueConstraint("prompt_id", "number"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: int = Field(foreign_key="prompt.id")
    number: int
    system: str  # Jinja2
    user: str  # Jinja2
    output_schema: dict[str, Any] = Field(sa_type=JSON)
    model_defaults: dict[str, Any] = Field(sa_type=JSON)  # e.g. {"temperature": 0.2}
    validators: list[dict[str, Any]] = Field(sa_type=JSON)  # [{"rule": NAME, **options}]
    content_hash: str = Field(index=True)
    message: str = ""
    author: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class Alias(SQLModel, table=True):
    """A movable name such as `production` that points at one version of a prompt."""

    __tablename__ = "alias"
    __table_args__ = (UniqueConstraint("prompt_id", "name"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: int = Field(foreign_key="prompt.id")
    name: str
    version_id: int = Field(foreign_key="prompt_version.id")
    protected: bool = False


class AliasMove(SQLModel, table=True):
    """The log of an alias; a rollback is a move too."""

    __tablename__ = "alias_move"

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: int = Field(foreign_key="prompt.id", index=True)
    name: str
    from_number: int | None
    to_number: int | None
    reason: str = ""
    author: str = ""
    at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
