"""How a migration plants prompts that the service is delivered with, and takes them back."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

_CONTENT = ("system", "user", "output_schema", "model_defaults", "validators")
_REASON = "Delivered with the service"

_prompt = sa.table(
    "prompt",
    *(sa.column(name) for name in ("id", "name", "kind", "summary")),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
_version = sa.table(
    "prompt_version",
    *(sa.column(n) for n in ("id", "prompt_id", "number", "system", "user", "content_hash")),
    *(sa.column(n, sa.JSON()) for n in ("output_schema", "model_defaults", "validators")),
    *(sa.column(n) for n in ("message", "author")),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
_alias = sa.table(
    "alias",
    *(sa.column(name) for name in ("prompt_id", "name", "version_id")),
    sa.column("protected", sa.Boolean()),
)
_move = sa.table(
    "alias_move",
    *(sa.column(n) for n in ("prompt_id", "name", "from_number", "to_number", "reason", "author")),
    sa.column("at", sa.DateTime(timezone=True)),
)
_tag = sa.table("prompt_tag", sa.column("prompt_id"), sa.column("tag"))


def _hash(seed: Mapping[str, Any]) -> str:
    body = {name: seed[name] for name in ("kind", *_CONTENT)}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def plant(connection: Connection, seeds: Iterable[Mapping[str, Any]]) -> None:
    """Insert each seed as version 1 of its prompt, with the alias `production` on it.

    A prompt of that name that people made themselves is left as it is.
    """
    now = datetime.now(UTC)
    for seed in seeds:
        if _id(connection, seed) is not None:
            continue
        prompt_id = connection.execute(
            sa.insert(_prompt)
            .values(
                {name: seed[name] for name in ("name", "kind", "summary")} | {"created_at": now}
            )
            .returning(_prompt.c.id)
        ).scalar_one()
        version_id = connection.execute(
            sa.insert(_version)
            .values(
                {name: seed[name] for name in _CONTENT}
                | {
                    "prompt_id": prompt_id,
                    "number": 1,
                    "content_hash": _hash(seed),
                    "message": _REASON,
                    "author": "",
                    "created_at": now,
                }
            )
            .returning(_version.c.id)
        ).scalar_one()
        connection.execute(
            sa.insert(_alias).values(
                prompt_id=prompt_id, name="production", version_id=version_id, protected=False
            )
        )
        connection.execute(
            sa.insert(_move).values(
                prompt_id=prompt_id,
                name="production",
                from_number=None,
                to_number=1,
                reason=_REASON,
                author="",
                at=now,
            )
        )
        for tag in seed.get("tags", ()):
            connection.execute(sa.insert(_tag).values(prompt_id=prompt_id, tag=tag))


def uproot(connection: Connection, seeds: Iterable[Mapping[str, Any]]) -> None:
    """Take the seeds back where nothing stands on them; what was made with them is kept."""
    generation = sa.table("generation", sa.column("prompt_version_id"))
    run = sa.table("run", sa.column("prompt_version_id"))
    for seed in seeds:
        prompt_id = _id(connection, seed)
        if prompt_id is None:
            continue
        versions = connection.execute(
            sa.select(_version.c.id, _version.c.content_hash).where(
                _version.c.prompt_id == prompt_id
            )
        ).all()
        if [row.content_hash for row in versions] != [_hash(seed)]:
            continue  # people went on from it, or it was theirs from the start
        used = [
            connection.execute(
                sa.select(sa.func.count())
                .select_from(table)
                .where(table.c.prompt_version_id.in_([row.id for row in versions]))
            ).scalar_one()
            for table in (generation, run)
        ]
        if any(used):
            continue
        own = (_alias, _move, _version) + ((_tag,) if "tags" in seed else ())
        for table in own:
            connection.execute(sa.delete(table).where(table.c.prompt_id == prompt_id))
        connection.execute(sa.delete(_prompt).where(_prompt.c.id == prompt_id))


def _id(connection: Connection, seed: Mapping[str, Any]) -> int | None:
    return connection.execute(
        sa.select(_prompt.c.id).where(_prompt.c.name == seed["name"])
    ).scalar_one_or_none()
