"""Pages about the class texts of a job: diagnostics and the similarity matrix."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from contract import Report, Thumbnails
from enrich_service.core.errors import NotFound
from enrich_service.core.rest.dependencies import Id, ReadSession, SettingsDep
from enrich_service.jobs import reports, service
from enrich_service.releases import service as release_service
from enrich_service.web.drawings.charts import line_chart
from enrich_service.web.drawings.plane import Plane, draw_plane
from enrich_service.web.page import page
from enrich_service.web.texts.releases import texts_of

router = APIRouter()

# Text strategy → the label field that it uses; for other strategies, all fields are shown.
_FIELD_OF = {"name+description": "description", "attributes": "attributes", "captions": "caption"}
_CONTROL = "shuffled"


@router.get("/jobs/{job_id}/diagnostics", response_class=HTMLResponse)
def show_diagnostics(
    request: Request, job_id: Id, session: ReadSession, settings: SettingsDep
) -> HTMLResponse:
    """The separation of a job's class texts, and the confusable classes."""
    job = service.view(session, service.get(session, job_id))
    report = reports.read(session, settings.artifact_dir, job_id)
    assert job.release_id is not None  # required for training
    release = release_service.parsed(release_service.get(session, job.release_id))
    field = _FIELD_OF.get(job.config.text_strategy)
    texts = {
        label.name: " ".join(text for name, text in texts_of(label) if field in (None, name))
        for label in release.labels
    }
    spectra = {
        bank.text: list(enumerate(bank.singular_values, start=1)) for bank in report.diagnostics
    }
    cosines = [value for pair in report.pulled_apart for value in (pair.before, pair.after)]
    return page(
        request,
        "jobs/diagnostics.html",
        job=job,
        report=report,
        texts=texts,
        control=_CONTROL,
        sheet=_sheet(report.thumbnails) if report.thumbnails else None,
        plane=_plane(report),
        spectrum=line_chart(
            "Singular values of the class texts", spectra, x_label="rank", log=True
        ),
        low=min(cosines, default=0.0),
        high=max(cosines, default=1.0),
    )


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of a job: its size, and the tiles of each class."""

    file: str
    side: int
    width: int
    height: int
    tiles: dict[str, list[tuple[int, int]]]  # by class, as (x, y)


def _sheet(thumbnails: Thumbnails) -> Sheet:
    tiles = defaultdict(list)
    for number, name in enumerate(thumbnails.tiles):
        row, column = divmod(number, thumbnails.columns)
        tiles[name].append((column * thumbnails.side, row * thumbnails.side))
    rows = -(-len(thumbnails.tiles) // thumbnails.columns)
    return Sheet(
        thumbnails.file,
        thumbnails.side,
        thumbnails.columns * thumbnails.side,
        rows * thumbnails.side,
        dict(tiles),
    )


def _plane(report: Report) -> Plane | None:
    """The map of text shifts. Classes in listed pairs get labels first."""
    if report.text_plane is None or not report.text_plane.classes:
        return None
    pairs = [(pair.a, pair.b) for pair in report.pulled_apart]
    for bank in report.diagnostics:
        if bank.text != _CONTROL:
            pairs += [(pair.a, pair.b) for pair in bank.confusable]
    return draw_plane(report.text_plane, first=[name for pair in pairs for name in pair])


@router.get("/jobs/{job_id}/similarity", response_class=HTMLResponse)
def show_similarity(
    request: Request,
    job_id: Id,
    session: ReadSession,
    settings: SettingsDep,
    texts: Annotated[str, Query(max_length=100)] = "",
) -> HTMLResponse:
    """The similarity matrix of the class texts; `texts`: text strategy, by default the last."""
    job = service.view(session, service.get(session, job_id))
    similarity = reports.read(session, settings.artifact_dir, job_id).similarity
    if similarity is None or not similarity.pictures:
        raise NotFound(
            f"Job {job_id} has no similarity matrix: duplicate the job and run it again."
        )
    chosen = next(
        (picture for picture in similarity.pictures if picture.text == texts),
        similarity.pictures[-1],
    )
    return page(
        request,
        "jobs/similarity.html",
        job=job,
        similarity=similarity,
        chosen=chosen,
        step=_decimals,
    )


def _decimals(value: float, step: float) -> str:
    """Format a cosine with the precision of `step`."""
    return f"{value:.{3 if step < 0.005 else 2}f}"
