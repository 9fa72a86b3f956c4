"""Prompts: immutable versions, and aliases that move between them with a log."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jsonschema
from referencing.exceptions import Unresolvable
from sqlalchemy import ColumnElement, exists
from sqlmodel import Session, col, delete, func, select

from enrich_service.core.errors import Conflict, InvalidInput, NoSuch, NotFound
from enrich_service.core.storage.database import utcnow
from enrich_service.core.text import check_alias, check_line, check_name, check_text, shortened
from enrich_service.prompts.differences import side_by_side, unified
from enrich_service.prompts.models import Alias, AliasMove, Prompt, PromptTag, PromptVersion
from enrich_service.prompts.schemas import (
    AliasMoveView,
    AliasPut,
    AliasRollback,
    AliasView,
    FieldDiff,
    PromptCreate,
    PromptKind,
    PromptView,
    VersionContent,
    VersionCreate,
    VersionDiff,
    VersionView,
)
from enrich_service.prompts.templates import check_template
from enrich_service.validation.answer_schema import check_patterns, check_references, parts_of
from enrich_service.validation.rules import check_rules

DEFAULT_ALIAS = "production"

# The content of a version; together with the prompt's kind it determines the content hash.
CONTENT_FIELDS = ("system", "user", "output_schema", "model_defaults", "validators")
MAX_JSON = 100_000  # bytes
MAX_JSON_DEPTH = 60
MAX_TAGS = 20
MAX_TAG = 50  # characters
# Reserved for the operator or set by the call.
_RESERVED_PARAMETERS = frozenset(
    {"api_key", "base_url", "messages", "n", "response_format", "stream", "tools", "extra_headers"}
)


def content_hash(
    *,
    kind: str,
    system: str,
    user: str,
    output_schema: Mapping[str, Any],
    model_defaults: Mapping[str, Any],
    validators: Sequence[Mapping[str, Any]],
) -> str:
    """SHA-256 (hex) of the content of a version, as canonical JSON."""
    body = {
        "kind": str(kind),
        "system": system,
        "user": user,
        "output_schema": output_schema,
        "model_defaults": model_defaults,
        "validators": validators,
    }
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_content(
    *,
    system: str,
    user: str,
    output_schema: Mapping[str, Any],
    model_defaults: Mapping[str, Any],
    validators: Sequence[Mapping[str, Any]],
) -> None:
    """Validate the content of a version. Raises InvalidInput, naming the field."""
    check_text("The system template", system, limit=20_000)
    check_text("The user template", user, limit=20_000)
    if not user.strip():
        raise InvalidInput("The user template is empty")
    check_template("system", system)
    check_template("user", user)
    for what, value in (
        ("output schema", output_schema),
        ("model defaults", model_defaults),
        ("validators", validators),
    ):
        _check_depth(what, value)
        try:
            size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
        except ValueError as error:
            raise InvalidInput(f"The {what} cannot be stored as JSON: {error}") from error
        if size > MAX_JSON:
            raise InvalidInput(f"The {what} is longer than {MAX_JSON} bytes")
    _check_schema(output_schema)
    for name in model_defaults:
        if name in _RESERVED_PARAMETERS or not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
            raise InvalidInput(f"{shortened(name)} is not a parameter that a prompt can set")
    check_parameters(model_defaults)
    check_rules(validators)


def _check_depth(what: str, value: Any) -> None:  # noqa: ANN401 - any JSON
    """Raise InvalidInput if JSON is nested so deep that parsing could overflow the stack."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for part in level
            if isinstance(part, Mapping | list | tuple)
            for child in (part.values() if isinstance(part, Mapping) else part)
        ]
        if not level:
            return
    raise InvalidInput(f"The {what}: JSON nested more than {MAX_JSON_DEPTH} deep")


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise InvalidInput for an invalid token limit (a retry after a cut-off answer doubles it)."""
    for name, value in parameters.items():
        if name.startswith("max_") and not (type(value) is int and value > 0):
            raise InvalidInput(
                f"{name} is {shortened(json.dumps(value))}: give a whole number of tokens, or "
                "leave it out"
            )


def _check_schema(schema: Mapping[str, Any]) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "top level"
        raise InvalidInput(
            f"The output schema is not valid: {where}: {shortened(error.message, 200)}"
        ) from error
    check_patterns(schema)
    if schema.get("type") != "object":
        raise InvalidInput('The output schema must describe an object: {"type": "object", …}')
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InvalidInput(
                f"The output schema refers to {shortened(reference)}: only #/… is allowed"
            )
        _check_reference(reference, schema)
    check_references(schema)


def _check_reference(reference: str, schema: Mapping[str, Any]) -> None:
    """Raise InvalidInput if `reference` does not resolve in `schema`, or is circular."""
    part_at = parts_of(schema)
    seen: set[str] = set()
    target: Any = reference
    while isinstance(target, str):
        if target in seen:
            raise InvalidInput(f"The output schema has a circular $ref: {shortened(reference)}")
        seen.add(target)
        try:
            part = part_at(target)
        except Unresolvable as error:
            raise InvalidInput(
                f"The output schema refers to {shortened(target)}, which does not exist"
            ) from error
        target = part.get("$ref") if isinstance(part, Mapping) else None


def _references(schema: Any) -> list[str]:  # noqa: ANN401 - any JSON
    if isinstance(schema, Mapping):
        own = [schema[key] for key in ("$ref", "$dynamicRef", "$schema") if key in schema]
        own = [value for value in own if isinstance(value, str)]
        own = [value for value in own if "json-schema.org/draft" not in value]
        return own + [inner for value in schema.values() for inner in _references(value)]
    if isinstance(schema, list):
        return [inner for value in schema for inner in _references(value)]
    return []


def get(session: Session, name: str) -> Prompt:
    """The prompt with this name. Raises NotFound."""
    prompt = session.exec(select(Prompt).where(Prompt.name == name)).one_or_none()
    if prompt is None:
        raise NoSuch(f"prompt {shortened(name)}", "prompts list", "/v1/prompts")
    return prompt


def latest(session: Session, prompt: Prompt) -> PromptVersion:
    """The newest version of `prompt`."""
    newest = _newest_or_none(session, prompt)
    assert newest is not None, f"prompt {prompt.name!r} has no version"
    return newest


def resolve(
    session: Session, name: str, *, version: int | None = None, alias: str | None = None
) -> PromptVersion:
    """The version of prompt `name` by number or alias; by default the newest.

    Raises NotFound for an unknown prompt, version or alias.
    """
    if version is not None and alias is not None:
        raise InvalidInput(f"Give a version or an alias of prompt {name!r}, not both")
    prompt = get(session, name)
    if alias is not None:
        return _by_number_or_alias(session, prompt, alias=alias)
    if version is not None:
        return _by_number_or_alias(session, prompt, number=version)
    return latest(session, prompt)


def resolve_default(session: Session, name: str) -> PromptVersion:
    """The default version of prompt `name`: `production`, or the newest without such an alias."""
    try:
        return resolve(session, name, alias=DEFAULT_ALIAS)
    except NotFound:
        return resolve(session, name)


def _by_number_or_alias(
    session: Session, prompt: Prompt, *, number: int | None = None, alias: str | None = None
) -> PromptVersion:
    query = select(PromptVersion).where(PromptVersion.prompt_id == prompt.id)
    if alias is not None:
        query = query.join(Alias, col(Alias.version_id) == col(PromptVersion.id)).where(
            Alias.name == alias
        )
    else:
        query = query.where(PromptVersion.number == number)
    version = session.exec(query).one_or_none()
    if version is None:
        missing = f"alias {shortened(alias)}" if alias is not None else f"version {number}"
        raise NotFound(f"Prompt {prompt.name!r} has no {missing}.")
    return version


def create(session: Session, body: PromptCreate) -> tuple[Prompt, PromptVersion]:
    """Create a prompt with version 1. Raises InvalidInput, or Conflict if the name exists."""
    check_name("The prompt's name", body.name)
    check_text("The summary", body.summary, limit=1000)
    if session.exec(select(Prompt.id).where(Prompt.name == body.name)).one_or_none() is not None:
        raise Conflict(f"Prompt {body.name!r} already exists: add a version to it.")
    prompt = Prompt(name=body.name, kind=str(body.kind), summary=body.summary)
    session.add(prompt)
    session.flush()
    set_tags(session, prompt, body.tags)
    version, _ = create_version(session, prompt, body)
    return prompt, version


def create_version(
    session: Session, prompt: Prompt, body: VersionCreate
) -> tuple[PromptVersion, bool]:
    """Create the next version of `prompt`, unless the newest has the same content.

    Returns the new version and True, or the newest version and False. Raises InvalidInput for
    invalid content, Conflict if the prompt is archived.
    """
    if prompt.archived_at is not None:
        raise Conflict(f"Prompt {prompt.name!r} is archived: restore it first.")
    check_text("The message", body.message, limit=1000)
    check_text("The author", body.author, limit=200)
    content = body.model_dump(include=set(VersionContent.model_fields))
    check_content(**content)
    digest = content_hash(kind=prompt.kind, **content)
    number = 1
    if newest := _newest_or_none(session, prompt):
        if newest.content_hash == digest:
            return newest, False
        number = newest.number + 1
    assert prompt.id is not None
    version = PromptVersion(
        prompt_id=prompt.id,
        number=number,
        content_hash=digest,
        message=body.message,
        author=body.author,
        **content,
    )
    session.add(version)
    session.flush()
    return version, True


def _newest_or_none(session: Session, prompt: Prompt) -> PromptVersion | None:
    return session.exec(
        select(PromptVersion)
        .where(PromptVersion.prompt_id == prompt.id)
        .order_by(col(PromptVersion.number).desc())
        .limit(1)
    ).one_or_none()


def versions(session: Session, prompt: Prompt) -> Sequence[PromptVersion]:
    """All versions of `prompt`, newest first."""
    return session.exec(
        select(PromptVersion)
        .where(PromptVersion.prompt_id == prompt.id)
        .order_by(col(PromptVersion.number).desc())
    ).all()


def names_by_version(session: Session) -> dict[int, str]:
    """The prompt's name of every version, by the version's id."""
    query = select(PromptVersion.id, Prompt.name).join(
        Prompt, col(PromptVersion.prompt_id) == col(Prompt.id)
    )
    return {version: name for version, name in session.exec(query) if version is not None}


def newest_versions(session: Session) -> dict[str, PromptVersion]:
    """The newest version of each prompt, by the prompt's name."""
    # A version's number and id grow together.
    newest = select(func.max(PromptVersion.id)).group_by(col(PromptVersion.prompt_id))
    query = (
        select(Prompt.name, PromptVersion)
        .join(PromptVersion, col(PromptVersion.prompt_id) == col(Prompt.id))
        .where(col(PromptVersion.id).in_(newest))
    )
    return dict(session.exec(query).all())


def listing(
    session: Session,
    *,
    archived: bool = False,
    search: str = "",
    tag: str | None = None,
    limit: int | None = 100,
    offset: int = 0,
) -> list[PromptView]:
    """Prompts by name, filtered by `search` (name, summary, tag) or by exact `tag`."""
    query = select(Prompt).order_by(Prompt.name).limit(limit).offset(offset)
    if not archived:
        query = query.where(col(Prompt.archived_at).is_(None))
    if search:
        query = query.where(
            col(Prompt.name).contains(search, autoescape=True)
            | col(Prompt.summary).contains(search, autoescape=True)
            | _tagged(col(PromptTag.tag).contains(search, autoescape=True))
        )
    if tag is not None:
        query = query.where(_tagged(col(PromptTag.tag) == tag))
    return _views(session, session.exec(query).all())


def _tagged(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a prompt has a tag that matches `condition`."""
    return exists().where(col(PromptTag.prompt_id) == col(Prompt.id), condition)


def tags_of(session: Session, prompt: Prompt) -> list[str]:
    """The tags of `prompt`, in alphabetical order."""
    return list(
        session.exec(
            select(PromptTag.tag).where(PromptTag.prompt_id == prompt.id).order_by(PromptTag.tag)
        )
    )


def set_tags(session: Session, prompt: Prompt, tags: Sequence[str]) -> None:
    """Replace the tags of `prompt`. Tags are not part of versions and hashes."""
    checked = {check_line(f"Tag {n}", tag, limit=MAX_TAG) for n, tag in enumerate(tags, start=1)}
    if len(checked) > MAX_TAGS:
        raise InvalidInput(f"A prompt has at most {MAX_TAGS} tags; {len(checked)} are given")
    assert prompt.id is not None
    session.execute(delete(PromptTag).where(col(PromptTag.prompt_id) == prompt.id))
    session.add_all(PromptTag(prompt_id=prompt.id, tag=tag) for tag in checked)
    session.flush()


def view(session: Session, prompt: Prompt) -> PromptView:
    """The API schema of `prompt`."""
    return _views(session, [prompt])[0]


def _views(session: Session, prompts: Sequence[Prompt]) -> list[PromptView]:
    """The API schema of each of `prompts`, with three queries for all of them."""
    ids = [prompt.id for prompt in prompts]
    latest_numbers = dict(
        session.exec(
            select(PromptVersion.prompt_id, func.max(PromptVersion.number))
            .where(col(PromptVersion.prompt_id).in_(ids))
            .group_by(col(PromptVersion.prompt_id))
        ).all()
    )
    aliases: defaultdict[int | None, list[AliasView]] = defaultdict(list)
    for alias, number in session.exec(
        select(Alias, PromptVersion.number)
        .join(PromptVersion, col(Alias.version_id) == col(PromptVersion.id))
        .where(col(Alias.prompt_id).in_(ids))
        .order_by(Alias.name)
    ):
        shown = AliasView(name=alias.name, version=number, protected=alias.protected)
        aliases[alias.prompt_id].append(shown)
    tags: defaultdict[int | None, list[str]] = defaultdict(list)
    for tag in session.exec(
        select(PromptTag).where(col(PromptTag.prompt_id).in_(ids)).order_by(PromptTag.tag)
    ):
        tags[tag.prompt_id].append(tag.tag)
    return [
        PromptView(
            name=prompt.name,
            kind=PromptKind(prompt.kind),
            summary=prompt.summary,
            tags=tags[prompt.id],
            latest=latest_numbers[prompt.id or 0],
            aliases=aliases[prompt.id],
            archived_at=prompt.archived_at,
            created_at=prompt.created_at,
        )
        for prompt in prompts
    ]


def version_view(prompt: Prompt, version: PromptVersion) -> VersionView:
    """The API schema of `version`."""
    return VersionView(
        prompt=prompt.name,
        kind=PromptKind(prompt.kind),
        **version.model_dump(exclude={"id", "prompt_id"}),
    )


def move_alias(
    session: Session,
    prompt: Prompt,
    name: str,
    body: AliasPut,
    *,
    at: datetime | None = None,
) -> AliasView:
    """Point alias `name` at a version and log the move; create the alias if it does not exist.

    Nothing is logged if the alias already points at that version.

    Args:
        at: Time of the move. Default: now.

    Raises:
        InvalidInput: the name, reason or author is invalid.
        NotFound: the prompt has no such version.
        Conflict: the alias is protected, and a confirmation or reason is missing.
    """
    check_alias(name)
    check_text("The reason", body.reason, limit=1000)
    check_text("The author", body.author, limit=200)
    target = _by_number_or_alias(session, prompt, number=body.version)
    assert prompt.id is not None and target.id is not None
    alias = session.exec(
        select(Alias).where(Alias.prompt_id == prompt.id, Alias.name == name)
    ).one_or_none()
    before = None
    if alias is None:
        alias = Alias(prompt_id=prompt.id, name=name, version_id=target.id)
    else:
        before = session.get_one(PromptVersion, alias.version_id).number
        changes = before != body.version or body.protected is False
        if alias.protected and changes and not (body.confirm and body.reason.strip()):
            raise Conflict(
                f"Alias {name!r} of prompt {prompt.name!r} is protected: "
                'confirm with a reason: --confirm --reason, in a request "confirm" and "reason".'
            )
    alias.version_id = target.id
    if body.protected is not None:
        alias.protected = body.protected
    session.add(alias)
    if before != body.version:
        session.add(
            AliasMove(
                prompt_id=prompt.id,
                name=name,
                from_number=before,
                to_number=body.version,
                reason=body.reason,
                author=body.author,
                at=at or utcnow(),
            )
        )
    session.flush()
    return AliasView(name=name, version=body.version, protected=alias.protected)


def roll_back_alias(session: Session, prompt: Prompt, name: str, body: AliasRollback) -> AliasView:
    """Roll alias `name` back to its previous version, and log the move.

    Raises NotFound if there is no such alias, Conflict if it has no previous version, or is
    protected and the rollback is not confirmed.
    """
    moves = alias_moves(session, prompt, name)
    if not moves:
        raise NotFound(f"Prompt {prompt.name!r} has no alias {shortened(name)}.")
    before = moves[0].from_version
    if before is None:
        raise Conflict(f"Alias {name!r} of prompt {prompt.name!r} has no previous version.")
    move = body.model_dump() | {"reason": body.reason or "rollback"}
    return move_alias(session, prompt, name, AliasPut(version=before, **move))


def alias_moves(session: Session, prompt: Prompt, name: str | None = None) -> list[AliasMoveView]:
    """The moves of alias `name`, or of all aliases, newest first."""
    query = (
        select(AliasMove).where(AliasMove.prompt_id == prompt.id).order_by(col(AliasMove.id).desc())
    )
    if name is not None:
        query = query.where(AliasMove.name == name)
    return [
        AliasMoveView(
            from_version=move.from_number,
            to_version=move.to_number,
            **move.model_dump(include={"name", "reason", "author", "at"}),
        )
        for move in session.exec(query)
    ]


def diff(
    session: Session, prompt: Prompt, before: int, after: int, *, context: int | None = None
) -> VersionDiff:
    """The changed fields between the versions `before` and `after`.

    `context`: number of equal lines shown around a change; 0: only changes, None: the whole field.
    Raises NotFound for an unknown version.
    """
    old = _by_number_or_alias(session, prompt, number=before)
    new = _by_number_or_alias(session, prompt, number=after)
    changed = []
    for field in CONTENT_FIELDS:
        a, b = _lines(getattr(old, field)), _lines(getattr(new, field))
        if a != b:
            changed.append(
                FieldDiff(field=field, diff=unified(a, b), rows=side_by_side(a, b, context))
            )
    return VersionDiff(prompt=prompt.name, from_version=before, to_version=after, changed=changed)


def _lines(value: Any) -> list[str]:  # noqa: ANN401 - a text or any JSON
    if not isinstance(value, str):
        value = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return str(value).split("\n")


def set_archived(session: Session, prompt: Prompt, archived: bool) -> None:
    """Archive or restore `prompt`. Versions and texts are unchanged."""
    if archived != (prompt.archived_at is not None):
        prompt.archived_at = utcnow() if archived else None
        session.add(prompt)
        session.flush()
