"""Checks of the installation; they change nothing."""

import asyncio
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

import httpx2
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import BaseModel
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from enrich_service.core.errors import UserError
from enrich_service.core.settings import MEBIBYTE, Settings
from enrich_service.core.storage.database import make_engine, reading, storage_error, utcnow
from enrich_service.core.storage.migrate import alembic_config
from enrich_service.core.text import without_password
from enrich_service.jobs.artifacts import location
from enrich_service.jobs.models import JobArtifact
from enrich_service.keys import service as keys
from enrich_service.llm.open_model import open_model
from enrich_service.llm.ssrf_guard import GuardedTransport
from enrich_service.operation import backup

LOW_DISK_SPACE: Final = 1024 * MEBIBYTE  # bytes; less is a warning
NO_DISK_SPACE: Final = 64 * MEBIBYTE  # bytes; less has failed
SOON: Final = timedelta(days=7)
LLM_TIMEOUT_S: Final = 10.0

Verdict = Literal["ok", "warning", "failed"]


class Finding(BaseModel):
    """The result of one check; `detail` is the reason and what to do."""

    check: str
    verdict: Verdict
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Run all checks. A check that raises an error has failed."""
    engine = make_engine(settings.sqlalchemy_url)
    checks: dict[str, Callable[[], tuple[Verdict, str]]] = {
        "data folder": lambda: _data_folder(settings),
        "disk": lambda: _disk(settings),
        "migrations": lambda: _migrations(engine),
        "integrity": lambda: _integrity(engine, settings),
        "API keys": lambda: _keys(engine, settings),
        "artifacts": lambda: _artifacts(engine, settings),
        "language model": lambda: asyncio.run(_language_model(settings)),
    }
    try:
        return [_finding(name, check) for name, check in checks.items()]
    finally:
        engine.dispose()


def _finding(name: str, check: Callable[[], tuple[Verdict, str]]) -> Finding:
    try:
        verdict, detail = check()
    except UserError as error:
        verdict, detail = "failed", str(error)
    except (DBAPIError, OSError) as error:
        known = storage_error(error)
        message = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
        verdict, detail = "failed", str(known or " ".join(message.split()))
    return Finding(check=name, verdict=verdict, detail=detail)


def _data_folder(settings: Settings) -> tuple[Verdict, str]:
    folder = settings.data_dir
    if not folder.is_dir():
        return "warning", f"there is no {folder} yet; `enrich serve` creates it"
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return "failed", f"{folder} is not writable: change its owner or its mode"
    return "ok", str(folder)


def _disk(settings: Settings) -> tuple[Verdict, str]:
    data_dir = settings.data_dir.absolute()
    folder = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    space = f"{free / MEBIBYTE:.0f} MiB free at {folder}"
    if free < NO_DISK_SPACE:
        return "failed", f"{space}: free some space"
    return ("warning", f"{space}: nearly full") if free < LOW_DISK_SPACE else ("ok", space)


def _exists(engine: Engine) -> bool:
    """Whether there is a database; the check must not create one."""
    file = engine.url.database
    return engine.dialect.name != "sqlite" or (file is not None and Path(file).is_file())


def _migrations(engine: Engine) -> tuple[Verdict, str]:
    if not _exists(engine):
        return "warning", "there is no database yet; `enrich serve` creates it"
    script = ScriptDirectory.from_config(alembic_config(engine))
    head = script.get_current_head()
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision == head:
        return "ok", f"at {head}, the newest"
    if revision is not None and revision not in {
        known.revision for known in script.walk_revisions()
    }:
        return "failed", f"the database has the newer revision {revision}: upgrade the service"
    return "warning", (
        f"at {revision}, the newest is {head}: the next start migrates the database (back it up "
        "first)"
    )


def _integrity(engine: Engine, settings: Settings) -> tuple[Verdict, str]:
    if not _exists(engine):
        return "ok", "no database yet"
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            raw = connection.connection.driver_connection
            assert raw is not None
            backup.check(raw)
            size = backup.database_file(settings).stat().st_size
            return "ok", f"intact, {size / MEBIBYTE:.1f} MiB"
        connection.execute(text("SELECT 1"))
        return "ok", "the server answers"


def _keys(engine: Engine, settings: Settings) -> tuple[Verdict, str]:
    if not _has_table(engine, "api_key"):
        return "ok", "none yet: only this machine has access"
    now = utcnow()
    with reading(engine) as session:
        all_keys = keys.listing(session)
    valid = [
        key
        for key in all_keys
        if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
    ]
    if not all_keys and settings.allow_remote:
        return (
            "warning",
            "none, and ENRICH_ALLOW_REMOTE gives full access to everyone who can reach the service",
        )
    if not all_keys:
        return "ok", "none yet: only this machine has access"
    if not valid:
        return "failed", "all are revoked or expired: create one with `enrich keys create NAME`"
    expiring = [key for key in valid if key.expires_at is not None and key.expires_at < now + SOON]
    if expiring:
        names = ", ".join(key.name for key in expiring)
        return "warning", f"{len(valid)} valid, of which {names} will expire within a week"
    return "ok", f"{len(valid)} valid"


def _artifacts(engine: Engine, settings: Settings) -> tuple[Verdict, str]:
    if not _has_table(engine, "job_artifact"):
        return "ok", "none yet"
    with reading(engine) as session:
        artifacts = session.exec(select(JobArtifact.sha256, JobArtifact.size)).all()
    wrong = 0
    for sha256, size in artifacts:
        path = location(settings.artifact_dir, sha256)
        wrong += not path.is_file() or path.stat().st_size != size
    if wrong:
        return "failed", (
            f"{wrong} of {len(artifacts)} are missing or truncated in {settings.artifact_dir}: "
            "restore them from a backup"
        )
    return "ok", f"{len(artifacts)}, all present"


def _has_table(engine: Engine, name: str) -> bool:
    return _exists(engine) and inspect(engine).has_table(name)


async def _language_model(settings: Settings) -> tuple[Verdict, str]:
    """Open the configured language model and list its models, which is free of charge."""
    if not settings.llm_api_key and "llm_url" not in settings.model_fields_set:
        return (
            "warning",
            "not configured: set OPENAI_API_KEY, or OPENAI_BASE_URL for another server",
        )
    await open_model(settings).aclose()
    shown = without_password(settings.llm_url)
    if settings.llm_url.startswith("replay:"):
        return "ok", f"answers come from the file {settings.llm_url.partition(':')[2]}"
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else "none"
    async with httpx2.AsyncClient(
        transport=GuardedTransport(settings.llm_url),
        timeout=LLM_TIMEOUT_S,
        follow_redirects=False,
    ) as client:
        try:
            answer = await client.get(
                f"{settings.llm_url.rstrip('/')}/models",
                headers={"Authorization": f"Bearer {key}"},
            )
        except httpx2.HTTPError as error:
            return "failed", f"{shown} does not answer ({str(error) or type(error).__name__})"
    if answer.status_code in (401, 403):
        return (
            "failed",
            f"{shown} rejected the API key ({answer.status_code}): check OPENAI_API_KEY",
        )
    if answer.status_code >= 500 or answer.is_redirect:
        return "failed", f"{shown} answers {answer.status_code}: check OPENAI_BASE_URL"
    return "ok", f"{shown} answers"
