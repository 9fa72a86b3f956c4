"""API schema of prompts."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool


class PromptKind(StrEnum):
    """Release field that the answers fill; `image_caption` answers are exported to a file."""

    DESCRIPTION = "description"
    ATTRIBUTES = "attributes"
    SENTENCES = "sentences"
    CAPTIONS = "captions"
    LOOK_ALIKES = "look_alikes"
    IMAGE_CAPTION = "image_caption"


RELEASED_KINDS = tuple(kind for kind in PromptKind if kind is not PromptKind.IMAGE_CAPTION)
# A release unites their samples.
UNION_KINDS = (PromptKind.SENTENCES, PromptKind.CAPTIONS, PromptKind.LOOK_ALIKES)
DEFAULT_PROMPT = "visual-description"


_CONTENT: dict[str, Any] = {
    "system": "You describe what can be seen of a class of objects. Answer in JSON.",
    "user": "Describe {{ label | tojson }}{% if context %} ({{ context }}){% endif %}.",
    "output_schema": {
        "type": "object",
        "properties": {"description": {"type": "string", "maxLength": 300}},
        "required": ["description"],
        "additionalProperties": False,
    },
    "model_defaults": {"temperature": 0.2, "max_tokens": 200},
    "validators": [{"rule": "refusal"}],
    "message": "Shorter, and colours first",
    "author": "ada",
}
_WHEN = "2026-01-02T03:04:05Z"


class VersionContent(BaseModel):
    """The content of a prompt version."""

    model_config = ConfigDict(extra="forbid")

    system: Annotated[
        str, Field(description="Jinja2 template of the system message; may be empty")
    ] = ""
    user: Annotated[str, Field(description="Jinja2 template of the user message")]
    output_schema: Annotated[
        dict[str, JsonValue], Field(description="JSON Schema of the answer, an object")
    ]
    model_defaults: Annotated[
        dict[str, JsonValue], Field(description="Default model parameters, e.g. temperature")
    ] = {}
    validators: Annotated[
        list[dict[str, JsonValue]],
        Field(description='Validation rules: [{"rule": NAME, …options}]'),
    ] = []


class VersionCreate(VersionContent):
    """A new version with its message."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_CONTENT]})

    message: Annotated[str, Field(description="Reason for this version")] = ""
    author: str = ""


class PromptCreate(VersionCreate):
    """A new prompt with its first version."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "short-description",
                    "kind": "description",
                    "summary": "One line",
                    "tags": ["birds"],
                    **_CONTENT,
                }
            ]
        },
    )

    name: str
    kind: PromptKind
    summary: str = ""
    tags: Annotated[list[str], Field(description="Search tags; mutable")] = []


class TagsPut(BaseModel):
    """The new tags of a prompt."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"tags": ["birds", "short"]}]}
    )

    tags: list[str]


class AliasView(BaseModel):
    """A movable name that points at a version."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "production", "version": 2, "protected": True}]}
    )

    name: str
    version: int
    protected: bool


class PromptView(BaseModel):
    """A prompt without the texts of its versions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "short-description",
                    "kind": "description",
                    "summary": "One line",
                    "tags": ["birds"],
                    "latest": 2,
                    "aliases": [{"name": "production", "version": 2, "protected": True}],
                    "archived_at": None,
                    "created_at": _WHEN,
                }
            ]
        }
    )

    name: str
    kind: PromptKind
    summary: str
    tags: list[str]
    latest: Annotated[int, Field(description="Number of the newest version")]
    aliases: list[AliasView]
    archived_at: datetime | None
    created_at: datetime


class VersionView(BaseModel):
    """An immutable version of a prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "short-description",
                    "kind": "description",
                    "number": 2,
                    **_CONTENT,
                    "content_hash": "0c" * 32,
                    "created_at": _WHEN,
                }
            ]
        }
    )

    prompt: str
    kind: PromptKind
    number: int
    system: str
    user: str
    output_schema: dict[str, JsonValue]
    model_defaults: dict[str, JsonValue]
    validators: list[dict[str, JsonValue]]
    content_hash: Annotated[str, Field(description="SHA-256 of the version's content")]
    message: str
    author: str
    created_at: datetime


class AliasPut(BaseModel):
    """Point an alias at a version. Creates the alias if it does not exist."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"version": 2, "reason": "2 % fewer refusals", "author": "ada", "protected": True}
            ]
        },
    )

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    reason: str = ""
    author: str = ""
    protected: Annotated[
        StrictBool | None, Field(description="Protect or unprotect the alias. Default: no change")
    ] = None
    confirm: Annotated[
        StrictBool,
        Field(description="Confirm the move of a protected alias; requires a reason"),
    ] = False


class AliasRollback(BaseModel):
    """Roll an alias back to its previous version."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "more refusals", "author": "ada"}]},
    )

    reason: str = ""
    author: str = ""
    confirm: Annotated[
        StrictBool, Field(description="Confirm the rollback of a protected alias")
    ] = False


class AliasMoveView(BaseModel):
    """One move of an alias."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "production",
                    "from_version": 1,
                    "to_version": 2,
                    "reason": "2 % fewer refusals",
                    "author": "ada",
                    "at": _WHEN,
                }
            ]
        }
    )

    name: str
    from_version: int | None
    to_version: int | None
    reason: str
    author: str
    at: datetime


class DiffPart(BaseModel):
    """A part of a line; `changed`: it differs from the other side."""

    text: str
    changed: bool


class DiffRow(BaseModel):
    """One row of two columns. A side without a line is null; `hidden` rows have neither side."""

    before: list[DiffPart] | None = None
    after: list[DiffPart] | None = None
    before_line: Annotated[int | None, Field(description="Line number from 1")] = None
    after_line: Annotated[int | None, Field(description="Line number from 1")] = None
    changed: bool = False
    hidden: Annotated[int, Field(description="Number of equal lines omitted here")] = 0


class FieldDiff(BaseModel):
    """A changed field, as a unified diff and as rows of two columns."""

    field: str
    diff: list[str]
    rows: list[DiffRow]


class VersionDiff(BaseModel):
    """The changed fields between two versions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "short-description",
                    "from_version": 1,
                    "to_version": 2,
                    "changed": [
                        {
                            "field": "user",
                            "diff": ["@@ -1 +1 @@", "-Describe it.", "+Describe its colours."],
                            "rows": [
                                {
                                    "before": [
                                        {"text": "Describe ", "changed": False},
                                        {"text": "it", "changed": True},
                                        {"text": ".", "changed": False},
                                    ],
                                    "after": [
                                        {"text": "Describe ", "changed": False},
                                        {"text": "its colours", "changed": True},
                                        {"text": ".", "changed": False},
                                    ],
                                    "before_line": 1,
                                    "after_line": 1,
                                    "changed": True,
                                    "hidden": 0,
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    )

    prompt: str
    from_version: int
    to_version: int
    changed: list[FieldDiff]


class ArchivePut(BaseModel):
    """Archive a prompt (it stays readable but accepts no new versions), or restore it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"archived": True}]})

    archived: StrictBool
