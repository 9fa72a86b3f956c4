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
from sqlalchemy import ColumnElement
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

    The first version creates the student. `folder` is the artifact folder.

    Raises:
        InvalidInput: the name, message or author is invalid.
        NotFound: there is no such job.
        Conflict: the job has no classifier, or is already registered as a version.
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
    """The artifact classifier.zip of a job, and its latency in ms per image, if given.

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
            f"Job {job.id} has no artifact {CLASSIFIER_ARTIFACT}: duplicate the job, "
            "and run it on a worker that exports its students."
        ) from None
    try:
        with zipfile.ZipFile(artifacts.location(folder, artifact.sha256)) as archive:
            latency = _latency_ms(archive.read(MANIFEST))
    except FileNotFoundError:
        raise Conflict(
            f"The file {CLASSIFIER_ARTIFACT} of job {job.id} is missing from the artifact "
            "folder: restore it from a backup."
        ) from None
    except (zipfile.BadZipFile, KeyError):
        raise Conflict(
            f"{CLASSIFIER_ARTIFACT} of job {job.id} is not a zip file with {MANIFEST} at its root: "
            "duplicate the job and run it again."
        ) from None
    return artifact, latency


def _latency_ms(manifest: bytes) -> float | None:
    """The latency in ms per image in a classifier's manifest; None if it is absent or invalid."""
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
    """The figures of a job's report, None if it cannot be read; and `latency` (ms per image)."""
    figures = Figures()
    with suppress(UserError, ValidationError):
        figures = figures_of(reports.read(session, folder, job_id))
    return figures.model_copy(update={"latency_ms": latency})


def figures_of(report: Report) -> Figures:
    """The figures of the student with the texts that it was trained with."""
    texts = report.config.text_strategy
    top1 = {
        row.split: row.top1
        for row in report.accuracies
        if row.model == "student" and row.text == texts
    }
    # The last row is evaluated with the calibrated bias of seen classes that the classifier uses.
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
    """The path of a version's classifier.zip. Raises NotFound if the file is missing."""
    path = artifacts.location(folder, version.sha256)
    if not path.is_file():
        raise NotFound(
            f"The file {CLASSIFIER_ARTIFACT} of job {version.job_id} is missing from the artifact "
            "folder: restore it from a backup."
        )
    return path


def listing(session: Session, *, limit: int | None = 100, offset: int = 0) -> list[StudentView]:
    """Students by name."""
    query = select(Student).order_by(Student.name).limit(limit).offset(offset)
    return _views(session, session.exec(query).all())


def view(session: Session, student: Student) -> StudentView:
    """The API schema of `student`."""
    return _views(session, [student])[0]


def _views(session: Session, students: Sequence[Student]) -> list[StudentView]:
    """The API schema of each of `students`, with two queries for all of them."""
    ids = [student.id for student in students]
    latest_numbers = dict(
        session.exec(
            select(StudentVersion.student_id, func.max(StudentVersion.number))
            .where(col(StudentVersion.student_id).in_(ids))
            .group_by(col(StudentVersion.student_id))
        ).all()
    )
    aliases: defaultdict[int | None, list[tuple[str, StudentVersion]]] = defaultdict(list)
    for alias, version in session.exec(
        select(StudentAlias, StudentVersion)
        .join(StudentVersion, col(StudentAlias.version_id) == col(StudentVersion.id))
        .where(col(StudentAlias.student_id).in_(ids))
        .order_by(StudentAlias.name)
    ):
        aliases[alias.student_id].append((alias.name, version))
    return [
        StudentView(
            name=student.name,
            latest=latest_numbers[student.id or 0],
            aliases=[_alias_view(student, *alias) for alias in aliases[student.id]],
            created_at=student.created_at,
        )
        for student in students
    ]


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
    conditions = []
    if student is not None:
        conditions.append(col(StudentVersion.student_id) == student.id)
    if number is not None:
        conditions.append(col(StudentVersion.number) == number)
    if job_id is not None:
        conditions.append(col(StudentVersion.job_id) == job_id)
    return _version_views(session, *conditions)


def newest_versions(session: Session) -> dict[str, StudentVersionView]:
    """The newest version of each student, by the student's name."""
    # A version's number and id grow together.
    newest = select(func.max(StudentVersion.id)).group_by(col(StudentVersion.student_id))
    views = _version_views(session, col(StudentVersion.id).in_(newest))
    return {view.student: view for view in views}


def _version_views(session: Session, *conditions: ColumnElement[bool]) -> list[StudentVersionView]:
    """The API schema of the versions that meet all `conditions`, newest first."""
    rows = session.exec(
        select(StudentVersion, Student, JobRow)
        .join(Student, col(StudentVersion.student_id) == col(Student.id))
        .join(JobRow, col(StudentVersion.job_id) == col(JobRow.id))
        .where(*conditions)
        .order_by(col(StudentVersion.id).desc())
    ).all()
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
    """The names of the aliases that point at each version, by version id."""
    names: defaultdict[int | None, list[str]] = defaultdict(list)
    ids = [version.id for version in versions]
    for alias in session.exec(
        select(StudentAlias)
        .where(col(StudentAlias.version_id).in_(ids))
        .order_by(StudentAlias.name)
    ):
        names[alias.version_id].append(alias.name)
    return names


def version_view(session: Session, student: Student, number: int) -> StudentVersionView:
    """A version of `student`. Raises NotFound."""
    get_version(session, student, number)
    (version,) = versions(session, student=student, number=number)
    return version


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
    """Point alias `name` at a version and log the move; create the alias if it does not exist.

    Nothing is logged if the alias already points at that version.

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
    """Roll alias `name` back to its previous version, and log the move.

    Raises NotFound if there is no such alias, Conflict if it has no previous version.
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
