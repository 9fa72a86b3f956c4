"""The configuration, report and epochs of a job, as pages show them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from contract import (
    Epoch,
    EventKind,
    Job,
    Report,
)
from enrich_service.core.errors import UserError
from enrich_service.core.settings import Settings
from enrich_service.jobs import artifacts, reports, service
from enrich_service.releases import service as release_service
from enrich_service.releases.schemas import ReleaseView

MAX_EPOCHS = 10_000


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config: the key of the field `cls` of `losses` is `losses.cls`."""
    flattened: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value
    return flattened


def flat_config(job: Job) -> dict[str, Any]:
    """The flattened configuration of a job."""
    return flat(job.config.model_dump(mode="json"))


def report_of(session: Session, settings: Settings, job: Job) -> tuple[Report | None, str | None]:
    """The report of a job and None, or None and why it cannot be read. Both None: no report yet."""
    if not any(artifact.name == "report.json" for artifact in artifacts.listing(session, job.id)):
        return None, None
    try:
        return reports.read(session, settings.artifact_dir, job.id), None
    except UserError as error:
        return None, str(error)


def epochs_of(session: Session, job_id: int) -> list[Epoch]:
    """The epochs of a job, without duplicates of resumed attempts.

    Events whose data is not an `Epoch` are left out, so that they cannot break a page.
    """
    epochs: dict[int, Epoch] = {}
    for event in service.last_events(session, job_id, EventKind.EPOCH, limit=MAX_EPOCHS):
        with suppress(ValidationError):
            epoch = Epoch.model_validate(event.data)
            epochs[epoch.epoch] = epoch
    return list(epochs.values())


def release_of(session: Session, job: Job) -> ReleaseView | None:
    """The release that a job trains on; None while the job waits for its run."""
    if job.release_id is None:
        return None
    return release_service.view(session, release_service.get(session, job.release_id))


def display_text(value: object) -> str:
    """A configuration value as text: a dash for None, booleans in lower case."""
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
