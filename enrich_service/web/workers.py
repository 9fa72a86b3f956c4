"""The page of workers, and their suggestions for the form of a job."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sqlmodel import Session

from contract import DataFolder, TrainConfig, WorkerOffers
from enrich_service.core.rest.dependencies import ReadSession, SettingsDep
from enrich_service.core.settings import Settings
from enrich_service.jobs import service as jobs
from enrich_service.web.page import page
from enrich_service.workers import service
from enrich_service.workers.schemas import WorkerView

router = APIRouter()
MAX_SUGGESTIONS: Final = 200  # per field
SPLIT_NAMES: Final = {"train": "training", "val_on_train": "validation", "val": "unseen"}


@router.get("/workers", response_class=HTMLResponse)
def list_workers(request: Request, session: ReadSession, settings: SettingsDep) -> HTMLResponse:
    """Workers with their devices, data sets and models, running ones first."""
    workers = service.listing(session, settings.lease_seconds, jobs=jobs.held_jobs(session))
    address = str(request.base_url).rstrip("/")
    return page(request, "workers.html", workers=workers, counts=image_counts, address=address)


def running(session: Session, settings: Settings) -> list[WorkerView]:
    """The workers that are running."""
    return service.listing(session, settings.lease_seconds, jobs={}, running_only=True)


def image_counts(folder: DataFolder) -> str:
    """Classes and images of a data set: "120 classes; 12,000 training, 2,400 unseen images"."""
    parts = []
    if folder.classes is not None:
        parts.append(f"{folder.classes:,} classes")
    if folder.images:
        splits = (
            f"{count:,} {SPLIT_NAMES.get(split, split)}" for split, count in folder.images.items()
        )
        parts.append(f"{', '.join(splits)} images")
    text = "; ".join(parts) or folder.kind
    return text if folder.complete else f"more than {text}"


@dataclass(frozen=True)
class Suggestion:
    """A value for a form field that a worker supports, with a description."""

    value: str
    description: str = ""


def suggestions(workers: Sequence[WorkerView]) -> dict[str, list[Suggestion]]:
    """Suggestions of the workers by field of a training configuration, without duplicates."""
    by_field: dict[str, dict[str, Suggestion]] = {}
    for offers in _offers(workers):
        for name, suggestion in _suggestions_of(offers):
            field_suggestions = by_field.setdefault(name, {})
            if len(field_suggestions) < MAX_SUGGESTIONS:
                field_suggestions.setdefault(suggestion.value, suggestion)
    return {name: list(field_suggestions.values()) for name, field_suggestions in by_field.items()}


def _suggestions_of(offers: WorkerOffers) -> Iterator[tuple[str, Suggestion]]:
    for folder in offers.data:
        yield "data", Suggestion(folder.path, image_counts(folder))
    for teacher in offers.teachers:
        yield "teacher", Suggestion(teacher)
    for student in offers.students:
        yield "student", Suggestion(student, "pretrained weights in the worker's cache")
    for path in offers.weights:
        yield "weights", Suggestion(path)


def recipes(workers: Sequence[WorkerView]) -> dict[str, dict[str, Any]]:
    """Recipe name → its fields, of all workers; without fields that this version does not know."""
    return {
        recipe.name: _known_fields(recipe.config)
        for offers in _offers(workers)
        for recipe in offers.recipes
    }


def _known_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    field_types = str, int, float, bool
    return {
        name: value
        for name, value in config.items()
        if name in TrainConfig.model_fields and isinstance(value, field_types)
    }


def _offers(workers: Sequence[WorkerView]) -> Iterable[WorkerOffers]:
    return (worker.offers for worker in workers if worker.offers is not None)
