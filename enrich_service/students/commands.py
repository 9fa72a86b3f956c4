"""`enrich students`."""

from typing import Annotated, Final, Self

import typer
from pydantic import BaseModel

from enrich_service.core.errors import InvalidInput
from enrich_service.core.terminal.console import (
    Author,
    Json,
    load_settings,
    read_session,
    request,
    show,
    show_table,
    write_session,
)
from enrich_service.students import service
from enrich_service.students.schemas import (
    MAX_NUMBER,
    Figures,
    StudentAliasPut,
    StudentAliasRollback,
    StudentRegister,
    StudentVersionView,
    StudentView,
)

app = typer.Typer(no_args_is_help=True, help="Registered students, their versions and aliases.")

COMPARED: Final = (
    "version",
    "aliases",
    "job",
    "model",
    "seen %",
    "unseen %",
    "joint %",
    "parameters",
    "latency (ms)",
    "size (MB)",
)
VERSIONS_PER_TABLE: Final = 4  # readable in 80 columns

Reason = Annotated[str, typer.Option(help="Reason, recorded in the log.")]


class _Row(BaseModel):
    """A student as a row of a table."""

    name: str
    latest: int
    aliases: str

    @classmethod
    def of(cls, student: StudentView) -> Self:
        """The row of `student`."""
        aliases = ", ".join(f"{alias.alias} → {alias.version}" for alias in student.aliases)
        return cls(name=student.name, latest=student.latest, aliases=aliases)


@app.command("list")
def list_(json: Json = False) -> None:
    """List students with their aliases."""
    with read_session() as session:
        students = service.listing(session, limit=None)
    show(students if json else [_Row.of(student) for student in students], json=json)


@app.command("show")
def show_(
    name: str,
    version: Annotated[
        int | None, typer.Option(min=1, max=MAX_NUMBER, help="Version number.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Version alias.")] = None,
    json: Json = False,
) -> None:
    """Show a version of a student. Default: the newest."""
    if version is not None and alias is not None:
        raise InvalidInput("Give --version or --alias, not both")
    with read_session() as session:
        student = service.get(session, name)
        if alias is not None:
            version = service.resolve(session, student, alias).version
        number = version or service.latest(session, student)
        view = service.version_view(session, student, number)
    show(view if json else _rounded(view), json=json)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="Name of the student, new or existing.")],
    job_id: Annotated[int, typer.Argument(help="Id of a succeeded job.")],
    message: Annotated[str, typer.Option(help="Reason for this version.")] = "",
    author: Author = "",
    json: Json = False,
) -> None:
    """Register the classifier of a job as the next version of a student."""
    body = request(StudentRegister, name=name, job_id=job_id, message=message, author=author)
    with write_session() as session:
        version = service.register(session, load_settings().artifact_dir, body)
        view = service.version_view(session, service.get(session, name), version.number)
    show(view, json=json, columns=("student", "number", "job_id", "bytes", "sha256"))


@app.command()
def alias(
    name: str,
    alias: str,
    version: int,
    reason: Reason,
    author: Author = "",
    json: Json = False,
) -> None:
    """Point an alias at a version."""
    body = request(StudentAliasPut, version=version, reason=reason, author=author)
    with write_session() as session:
        moved = service.move_alias(session, service.get(session, name), alias, body)
    show(moved, json=json, columns=("student", "alias", "version"))


@app.command()
def rollback(
    name: str, alias: str, reason: Reason, author: Author = "", json: Json = False
) -> None:
    """Roll an alias back to its previous version."""
    body = request(StudentAliasRollback, reason=reason, author=author)
    with write_session() as session:
        moved = service.roll_back_alias(session, service.get(session, name), alias, body)
    show(moved, json=json, columns=("student", "alias", "version"))


@app.command()
def compare(
    name: str,
    versions: Annotated[
        list[int] | None,
        typer.Argument(min=1, max=MAX_NUMBER, help="Version numbers. Default: all versions."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare the figures of versions: accuracies, size, latency."""
    with read_session() as session:
        student = service.get(session, name)
        views = service.versions(session, student=student)
        for number in versions or ():
            service.get_version(session, student, number)
    chosen = [view for view in views if not versions or view.number in versions]
    if json:
        show(chosen, json=True)
        return
    columns = [_column(version) for version in chosen]
    for start in range(0, len(columns), VERSIONS_PER_TABLE):
        titles, *rows = zip(*([COMPARED, *columns[start:][:VERSIONS_PER_TABLE]]), strict=True)
        show_table(titles, rows)


@app.command()
def moves(name: str, json: Json = False) -> None:
    """Show the log of a student's aliases, newest move first."""
    with read_session() as session:
        moves = service.alias_moves(session, service.get(session, name))
    if json:
        show(moves, json=True)
        return
    show_table(
        ("time (UTC)", "alias", "from", "to", "reason", "by"),
        [
            (
                f"{move.at:%Y-%m-%d %H:%M}",
                move.alias,
                "" if move.from_version is None else str(move.from_version),
                str(move.to_version),
                move.reason,
                move.author,
            )
            for move in moves
        ],
    )


def _column(version: StudentVersionView) -> tuple[str, ...]:
    """The values of a version in the order of COMPARED."""
    return (
        str(version.number),
        ", ".join(version.aliases),
        str(version.job_id),
        version.model,
        _figure(version.seen),
        _figure(version.unseen),
        _figure(version.joint_harmonic_mean),
        "" if version.parameters is None else f"{version.parameters:,}",
        _figure(version.latency_ms),
        _figure(version.bytes / 1e6),
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _rounded(version: StudentVersionView) -> StudentVersionView:
    figures = {name: getattr(version, name) for name in Figures.model_fields}
    return version.model_copy(
        update={
            name: value if value is None else round(value, 1) for name, value in figures.items()
        }
    )
