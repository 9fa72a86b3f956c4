"""What pages read of a job: its configuration, report and epochs."""

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

EPOCHS = 10_000


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A flattened config: `losses.cls` for the field `cls` of `losses`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def flat_config(job: Job) -> dict[str, Any]:
    """The flattened configuration of a job."""
    return flat(job.config.model_dump(mode="json"))


def report_of(session: Session, settings: Settings, job: Job) -> tuple[Report | None, str | None]:
    """The report of a job, or the reason why it cannot be shown; None while there is none."""
    if not any(artifact.name == "report.json" for artifact in artifacts.listing(session, job.id)):
        return None, None
    try:
        return reports.read(session, settings.artifact_dir, job.id), None
    except UserError as error:
        return None, str(error)


def epochs_of(session: Session, job_id: int) -> list[Epoch]:
    """The epochs of a job, without duplicates of resumed attempts.

    Events whose data is not an `Epoch` are left out: no stored JSON may break a page.
    """
    epochs: dict[int, Epoch] = {}
    for event in service.last_events(session, job_id, EventKind.EPOCH, limit=EPOCHS):
        with suppress(ValidationError):
            epoch = Epoch.model_validate(event.data)
            epochs[epoch.epoch] = epoch
    return list(epochs.values())


def release_of(session: Session, job: Job) -> ReleaseView | None:
    """The release that a job trains on; None while the job waits for its run."""
    if job.release_id is None:
        return None
    return release_service.view(session, release_service.get(session, job.release_id))


def shown(value: object) -> str:
    """A configuration value as text: a dash for none, booleans in lower case."""
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
