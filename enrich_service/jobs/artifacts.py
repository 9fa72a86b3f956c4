"""Artifacts of jobs: files stored once under their SHA-256."""

import re
from collections.abc import Sequence
from pathlib import Path

from sqlmodel import Session, col, select

from enrich_service.core.errors import InvalidInput, NotFound
from enrich_service.core.text import shortened
from enrich_service.jobs import service
from enrich_service.jobs.models import JobArtifact
from enrich_service.jobs.schemas import ArtifactView

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(json|html|safetensors|zip|txt|csv|png|jpg|svg|log)"
)
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,100}(; ?charset=[A-Za-z0-9-]{1,20})?")


def check_artifact_name(name: str) -> str:
    """Return `name` if it is a valid artifact name. Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{shortened(name)} is not an artifact name: use letters, digits, . _ - and one of the "
            "endings .json .html .safetensors .zip .txt .csv .png .jpg .svg .log"
        )
    return name


def check_media_type(media_type: str) -> str:
    """Return `media_type` if it is valid. Raises InvalidInput."""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidInput(f"{shortened(media_type)} is not a media type such as application/json")
    return media_type


def location(folder: Path, sha256: str) -> Path:
    """The path of the artifact with this hash."""
    return folder / sha256[:2] / sha256


def record(
    session: Session,
    job_id: int,
    fence: str,
    *,
    name: str,
    media_type: str,
    sha256: str,
    size: int,
) -> JobArtifact:
    """Record an artifact of a job, replacing one of the same name.

    Raises LeaseLost.
    """
    service.held(session, job_id, fence)
    artifact = session.exec(
        select(JobArtifact).where(JobArtifact.job_id == job_id, JobArtifact.name == name)
    ).one_or_none() or JobArtifact(job_id=job_id, name=name, media_type="", sha256="", size=0)
    artifact.media_type, artifact.sha256, artifact.size = media_type, sha256, size
    session.add(artifact)
    session.flush()
    return artifact


def get(session: Session, job_id: int, name: str) -> JobArtifact:
    """The artifact `name` of a job. Raises NotFound."""
    service.get(session, job_id)
    artifact = session.exec(
        select(JobArtifact).where(JobArtifact.job_id == job_id, JobArtifact.name == name)
    ).one_or_none()
    if artifact is None:
        raise NotFound(f"Job {job_id} has no artifact {shortened(name)}.")
    return artifact


def view(artifact: JobArtifact) -> ArtifactView:
    """The API schema of `artifact`."""
    return ArtifactView(**artifact.model_dump(exclude={"id", "job_id", "pinned"}))


def listing(session: Session, job_id: int) -> Sequence[JobArtifact]:
    """The artifacts of a job by name."""
    service.get(session, job_id)
    return session.exec(
        select(JobArtifact).where(JobArtifact.job_id == job_id).order_by(col(JobArtifact.name))
    ).all()
