"""The page that compares several jobs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field as PydanticField
from sqlmodel import Session

from contract import (
    Job,
    Report,
)
from enrich_service.core.errors import InvalidInput
from enrich_service.core.rest.dependencies import (
    MAX_ID,
    ReadSession,
    SettingsDep,
)
from enrich_service.core.settings import Settings
from enrich_service.jobs import service
from enrich_service.web.drawings.charts import Chart, bar_chart, line_chart
from enrich_service.web.jobs.results import (
    display_text,
    epochs_of,
    flat_config,
    release_of,
    report_of,
)
from enrich_service.web.page import csv_file, page

router = APIRouter()
MAX_COMPARED = 6
Jobs = Annotated[
    list[Annotated[int, PydanticField(ge=1, le=MAX_ID)]], Query(alias="job", default_factory=list)
]


@router.get("/jobs/compare", response_class=HTMLResponse)
def compare_jobs(
    request: Request, session: ReadSession, settings: SettingsDep, jobs: Jobs
) -> HTMLResponse:
    """Up to 6 jobs in one table and one chart."""
    return page(request, "jobs/compare.html", **_comparison(session, settings, jobs))


@router.get("/jobs/compare.csv")
def download_comparison(session: ReadSession, settings: SettingsDep, jobs: Jobs) -> Response:
    """The comparison as one CSV table."""
    found = _comparison(session, settings, jobs)
    rows = [(row.name, *row.values) for row in (*found["results"], *found["settings"])]
    return csv_file("jobs.csv", ("", *(f"job {job.id}" for job in found["jobs"])), rows)


@dataclass(frozen=True)
class ComparedRow:
    """One row of the comparison."""

    name: str
    values: tuple[object, ...]
    best: frozenset[int] = frozenset()  # positions of the highest value

    @property
    def differs(self) -> bool:
        """Whether the values of the jobs differ."""
        return len({repr(value) for value in self.values}) > 1


def _comparison(session: Session, settings: Settings, ids: Sequence[int]) -> dict[str, Any]:
    chosen = list(dict.fromkeys(ids))
    if not 2 <= len(chosen) <= MAX_COMPARED:
        raise InvalidInput(f"Choose 2 to {MAX_COMPARED} jobs to compare.")
    jobs = [service.view(session, service.get(session, job_id)) for job_id in chosen]
    reports = [report_of(session, settings, job)[0] for job in jobs]
    releases = [release_of(session, job) for job in jobs]
    configs = [flat_config(job) for job in jobs]
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = [
        ComparedRow(
            "release",
            tuple(
                f"{release.name} ({release.hash[:10]})" if release else display_text(None)
                for release in releases
            ),
        ),
        *(
            ComparedRow(name, tuple(display_text(config.get(name)) for config in configs))
            for name in names
        ),
    ]
    curves = {
        f"Job {job.id}": [(epoch.epoch, epoch.seen_top1) for epoch in epochs_of(session, job.id)]
        for job in jobs
    }
    return {
        "jobs": jobs,
        "results": _results(reports),
        "settings": sorted(rows, key=lambda row: not row.differs),
        "curves": line_chart("Accuracy on seen classes (%)", curves, x_label="epoch"),
        "bars": [
            (split, chart)
            for split in ("unseen", "seen")
            if (chart := _bars(split, jobs, reports)) is not None
        ],
    }


def _results(reports: Sequence[Report | None]) -> list[ComparedRow]:
    """Accuracies by model, text and split, as far as any job has them."""
    tables = [
        {(row.model, row.text, row.split): row.top1 for row in report.accuracies} if report else {}
        for report in reports
    ]
    rows = []
    for key in sorted({key for table in tables for key in table}, key=_order):
        values = [table.get(key) for table in tables]
        known = [value for value in values if value is not None]
        highest = max(known) if len(set(known)) > 1 else None
        best = frozenset(index for index, value in enumerate(values) if value and value == highest)
        model, text, split = key
        cells = tuple("–" if value is None else f"{value:.1f}" for value in values)
        rows.append(ComparedRow(f"{model}, {text}, {split}", cells, best))
    return rows


def _order(key: tuple[str, str, str]) -> tuple[bool, bool, bool, bool, str]:
    model, text, split = key
    return model == "teacher", split == "seen", text == "shuffled", text == "name", text


def _bars(split: str, jobs: Sequence[Job], reports: Sequence[Report | None]) -> Chart | None:
    groups = []
    for job, report in zip(jobs, reports, strict=True):
        rows = report.accuracies if report else ()
        values = {
            row.text: row.top1 for row in rows if row.model == "student" and row.split == split
        }
        if values:
            groups.append((f"Job {job.id}", values))
    return bar_chart(f"Student accuracy on {split} classes (%)", groups)
