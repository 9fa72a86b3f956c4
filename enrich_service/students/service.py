"""Students: immutable versions made by jobs, and aliases that move between them with a log."""

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import ValidationError
from sqlmodel import Session, col, func, select

from contract import CLASSIFIER_ARTIFACT, JobState, Report
from enrich_service.core.errors import Conflict, NoSuch, NotFound, UserError
from enrich_service.core.text import check_alias, check_line, check_name, check_text, shortened
from enrich_service.jobs import artifacts, reports
from enrich_service.jobs import service as job_service
from enrich_service.jobs.models import JobArtifact, JobRow
from enrich_service.students.models import (
    Student,
    StudentAlias,
    StudentAliasMove,
    StudentVersion,
)
from enrich_service.students.schemas import (
    Figures,
    StudentAliasMoveView,
    StudentAliasPut,
    StudentAliasRollback,
    StudentAliasView,
    StudentRegister,
    StudentVersionView,
    StudentView,
)

MANIFEST: Final = "classifier.json"  # at the root of the archive


def register(session: Session, folder: Path, body: StudentRegister) -> StudentVersion:
    """Register the classifier of a job as the next version of a student.

    The first version creates the student. `folder` holds the artifacts. Raises NotFound if there is
    no such job, Conflict if the job has no classifier to register or is a version already,
    InvalidInput for a name, message or author that cannot be stored.
    """
    check_name("The student's name", body.name)
    check_text("The message", body.message, limit=1000)
    check_text("The author", body.author, limit=200)
    job = job_service.get(session, body.job_id)
    artifact, latency = _classifier_of(session, folder, job)
    student = session.exec(select(Student).where(Student.name == body.name)).one_or_none()
    number = 1
    if student is None:
        student = Student(name=body.name)
        session.add(student)
        session.flush()
    else:
        _check_is_new(session, student, job)
        number = latest(session, student) + 1
    assert student.id is not None and artifact.id is not None
    version = StudentVersion(
        student_id=student.id,
        number=number,
        job_id=body.job_id,
        artifact_id=artifact.id,
        sha256=artifact.sha256,
        size=artifact.size,
        message=body.message,
        author=body.author,
        **_figures(session, folder, body.job_id, latency).model_dump(),
    )
    artifact.pinned = True
    session.add_all((version, artifact))
    session.flush()
    return version


def _classifier_of(session: Session, folder: Path, job: JobRow) -> tuple[JobArtifact, float | None]:
    """The artifact classifier.zip of a job, and the time of one image that it states.

    Raises Conflict if it cannot be registered.
    """
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"Job {job.id} is {job.state}: retry it, and register it once it succeeds.")
    if job.state is not JobState.SUCCEEDED:
        raise Conflict(f"Job {job.id} is {job.state}: register it once it has succeeded.")
    assert job.id is not None
    try:
        artifact = artifacts.get(session, job.id, CLASSIFIER_ARTIFACT)
    except NotFound:
        raise Conflict(
            f"Job {job.id} has no artifact {CLASSIFIER_ARTIFACT}: queue the same training again, "
            "for a worker that exports its student."
        ) from None
    try:
        with zipfile.ZipFile(artifacts.location(folder, artifact.sha256)) as archive:
            latency = _latency_ms(archive.read(MANIFEST))
    except FileNotFoundError:
        raise Conflict(
            f"The file of {CLASSIFIER_ARTIFACT} of job {job.id} is missing from the artifact "
            "folder: restore it from a backup."
        ) from None
    except (zipfile.BadZipFile, KeyError):
        raise Conflict(
            f"{CLASSIFIER_ARTIFACT} of job {job.id} is not a zip file with {MANIFEST} at its root: "
            "queue the same training again."
        ) from None
    return artifact, latency


def _latency_ms(manifest: bytes) -> float | None:
    """The time of one image that a classifier's manifest states; None where it states none."""
    try:
        document = json.loads(manifest)
    except ValueError:
        return None
    value = document.get("latency_ms") if isinstance(document, dict) else None
    return value if isinstance(value, float) and 0 < value < math.inf else None


def _check_is_new(session: Session, student: Student, job: JobRow) -> None:
    number = session.exec(
        select(StudentVersion.number).where(
            StudentVersion.student_id == student.id, StudentVersion.job_id == job.id
        )
    ).one_or_none()
    if number is not None:
        raise Conflict(
            f"Job {job.id} is already version {number} of student {student.name!r}: point an alias "
            "at that version instead."
        )


def _figures(session: Session, folder: Path, job_id: int, latency: float | None) -> Figures:
    """The figures of a job's report, None without a report that can be read, and the latency."""
    figures = Figures()
    with suppress(UserError, ValidationError):
        figures = figures_of(reports.read(session, folder, job_id))
    return figures.model_copy(update={"latency_ms": latency})


def figures_of(report: Report) -> Figures:
    """The figures of the student with the texts of its training."""
    texts = report.config.text_strategy
    top1 = {
        row.split: row.top1
        for row in report.accuracies
        if row.model == "student" and row.text == texts
    }
    # The last row is the one with the bias against seen classes that the classifier uses.
    joint = [row.harmonic_mean for row in report.joint if row.model == "student"]
    return Figures(
        seen=top1.get("seen"),
        unseen=top1.get("unseen"),
        joint_harmonic_mean=joint[-1] if joint else None,
        parameters=report.student_parameters,
    )


def get(session: Session, name: str) -> Student:
    """The student with this name. Raises NotFound."""
    student = session.exec(select(Student).where(Student.name == name)).one_or_none()
    if student is None:
        raise NoSuch(f"student {shortened(name)}", "students list", "/v1/students")
    return student


def get_version(session: Session, student: Student, number: int) -> StudentVersion:
    """A version of `student` by number. Raises NotFound."""
    version = session.exec(
        select(StudentVersion).where(
            StudentVersion.student_id == student.id, StudentVersion.number == number
        )
    ).one_or_none()
    if version is None:
        raise NotFound(f"Student {student.name!r} has no version {number}.")
    return version


def classifier_file(folder: Path, version: StudentVersion) -> Path:
    """The file of a version's classifier.zip. Raises NotFound if it is gone."""
    path = artifacts.location(folder, version.sha256)
    if not path.is_file():
        raise NotFound(
            f"The file of {CLASSIFIER_ARTIFACT} of job {version.job_id} is missing from the "
            "artifact folder."
        )
    return path


def listing(session: Session, *, limit: int | None = 100, offset: int = 0) -> list[StudentView]:
    """Students by name."""
    query = select(Student).order_by(Student.name).limit(limit).offset(offset)
    return [view(session, student) for student in session.exec(query)]


def view(session: Session, student: Student) -> StudentView:
    """The API schema of `student`."""
    aliases = session.exec(
        select(StudentAlias, StudentVersion)
        .join(StudentVersion, col(StudentAlias.version_id) == col(StudentVersion.id))
        .where(StudentAlias.student_id == student.id)
        .order_by(StudentAlias.name)
    )
    return StudentView(
        name=student.name,
        latest=latest(session, student),
        aliases=[_alias_view(student, alias.name, version) for alias, version in aliases],
        created_at=student.created_at,
    )


def latest(session: Session, student: Student) -> int:
    """The number of the newest version of `student`."""
    query = select(func.max(StudentVersion.number)).where(StudentVersion.student_id == student.id)
    return session.exec(query).one()


def _path(student: Student, version: StudentVersion) -> str:
    return f"/v1/students/{quote(student.name)}/versions/{version.number}/classifier"


def _alias_view(student: Student, name: str, version: StudentVersion) -> StudentAliasView:
    return StudentAliasView(
        student=student.name,
        alias=name,
        version=version.number,
        sha256=version.sha256,
        bytes=version.size,
        classifier=_path(student, version),
    )


def versions(
    session: Session,
    *,
    student: Student | None = None,
    number: int | None = None,
    job_id: int | None = None,
) -> list[StudentVersionView]:
    """The versions of a student, or those made from a job, newest first."""
    query = (
        select(StudentVersion, Student, JobRow)
        .join(Student, col(StudentVersion.student_id) == col(Student.id))
        .join(JobRow, col(StudentVersion.job_id) == col(JobRow.id))
        .order_by(col(StudentVersion.id).desc())
    )
    if student is not None:
        query = query.where(StudentVersion.student_id == student.id)
    if number is not None:
        query = query.where(StudentVersion.number == number)
    if job_id is not None:
        query = query.where(StudentVersion.job_id == job_id)
    rows = session.exec(query).all()
    names = _aliases(session, [version for version, _, _ in rows])
    return [
        StudentVersionView(
            student=student.name,
            aliases=names[version.id],
            model=job.config["student"],
            bytes=version.size,
            classifier=_path(student, version),
            **version.model_dump(exclude={"id", "student_id", "artifact_id", "size"}),
        )
        for version, student, job in rows
    ]


def _aliases(
    session: Session, versions: Sequence[StudentVersion]
) -> defaultdict[int | None, list[str]]:
    """The names of the aliases that point at each version, by id."""
    names: defaultdict[int | None, list[str]] = defaultdict(list)
    wanted = [version.id for version in versions]
    for alias in session.exec(
        select(StudentAlias)
        .where(col(StudentAlias.version_id).in_(wanted))
        .order_by(StudentAlias.name)
    ):
        names[alias.version_id].append(alias.name)
    return names


def version_view(session: Session, student: Student, number: int) -> StudentVersionView:
    """A version of `student`. Raises NotFound."""
    get_version(session, student, number)
    (found,) = versions(session, student=student, number=number)
    return found


def resolve(session: Session, student: Student, alias: str) -> StudentAliasView:
    """The version that `alias` points at. Raises NotFound."""
    version = session.exec(
        select(StudentVersion)
        .join(StudentAlias, col(StudentAlias.version_id) == col(StudentVersion.id))
        .where(StudentAlias.student_id == student.id, StudentAlias.name == alias)
    ).one_or_none()
    if version is None:
        raise NotFound(f"Student {student.name!r} has no alias {shortened(alias)}.")
    return _alias_view(student, alias, version)


def move_alias(
    session: Session, student: Student, name: str, body: StudentAliasPut
) -> StudentAliasView:
    """Point alias `name` at a version and log the move. The same version changes nothing.

    Raises InvalidInput for an invalid name or reason, NotFound if there is no such version.
    """
    check_alias(name)
    check_line("The reason", body.reason, limit=1000)
    check_text("The author", body.author, limit=200)
    target = get_version(session, student, body.version)
    assert student.id is not None and target.id is not None
    alias = session.exec(
        select(StudentAlias).where(StudentAlias.student_id == student.id, StudentAlias.name == name)
    ).one_or_none()
    before = None
    if alias is None:
        alias = StudentAlias(student_id=student.id, name=name, version_id=target.id)
    else:
        before = session.get_one(StudentVersion, alias.version_id).number
        alias.version_id = target.id
    session.add(alias)
    if before != target.number:
        session.add(
            StudentAliasMove(
                student_id=student.id,
                name=name,
                from_number=before,
                to_number=target.number,
                reason=body.reason.strip(),
                author=body.author,
            )
        )
    session.flush()
    return _alias_view(student, name, target)


def roll_back_alias(
    session: Session, student: Student, name: str, body: StudentAliasRollback
) -> StudentAliasView:
    """Point alias `name` at the version before its last move, and log that.

    Raises NotFound if there is no such alias, Conflict if it was never moved.
    """
    moves = alias_moves(session, student, name)
    if not moves:
        raise NotFound(f"Student {student.name!r} has no alias {shortened(name)}.")
    before = moves[0].from_version
    if before is None:
        raise Conflict(f"Alias {name!r} of student {student.name!r} has no previous version.")
    move = StudentAliasPut(version=before, **body.model_dump())
    return move_alias(session, student, name, move)


def alias_moves(
    session: Session, student: Student, name: str | None = None
) -> list[StudentAliasMoveView]:
    """The moves of alias `name`, or of all aliases, newest first."""
    query = (
        select(StudentAliasMove)
        .where(StudentAliasMove.student_id == student.id)
        .order_by(col(StudentAliasMove.id).desc())
    )
    if name is not None:
        query = query.where(StudentAliasMove.name == name)
    return [
        StudentAliasMoveView(
            alias=move.name,
            from_version=move.from_number,
            to_version=move.to_number,
            **move.model_dump(include={"reason", "author", "at"}),
        )
        for move in session.exec(query)
    ]
