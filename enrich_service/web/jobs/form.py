"""The form that queues a job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args, get_origin

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlmodel import Session

from contract import (
    JobCreate,
    TrainConfig,
)
from enrich_service.core.errors import NotFound, UserError
from enrich_service.core.rest import audit
from enrich_service.core.rest.dependencies import (
    MAX_ID,
    ReadSession,
    SettingsDep,
    WriteSession,
)
from enrich_service.core.text import shortened
from enrich_service.jobs import service
from enrich_service.releases import service as release_service
from enrich_service.web import workers
from enrich_service.web.forms import (
    SentForm,
    field_values,
    parse_form,
    redirect,
    without_none,
)
from enrich_service.web.jobs.results import flat_config
from enrich_service.web.page import page
from enrich_service.web.workers import Suggestion
from enrich_service.workers import matching
from enrich_service.workers.schemas import WorkerView

router = APIRouter()


@dataclass(frozen=True)
class Field:
    """One field of the form."""

    name: str
    kind: Literal["text", "integer", "number", "checkbox", "choice"]
    value: object
    description: str
    choices: tuple[str, ...] = ()
    required: bool = False
    suggestions: tuple[Suggestion, ...] = ()


_MAIN_FIELDS = ("data", "teacher", "student", "text_strategy", "epochs", "image_size", "seed")


@router.get("/jobs/new", response_class=HTMLResponse)
def choose_job(
    request: Request,
    session: ReadSession,
    settings: SettingsDep,
    release_id: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    like: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    recipe: str | None = None,
) -> HTMLResponse:
    """The form of a new job, with the settings of the job `like` or of a worker's `recipe`."""
    given: dict[str, Any] = {}
    if like is not None:
        other = service.view(session, service.get(session, like))
        given = flat_config(other)
        release_id = release_id or other.release_id
    running = workers.running(session, settings)
    if recipe is not None:
        known = workers.recipes(running)
        if recipe not in known:
            raise NotFound(f"No running worker has a recipe {shortened(recipe)}.")
        given |= known[recipe]
    given |= {"release_id": str(release_id or "")}
    return _form(request, session, running, given)


def _form(
    request: Request,
    session: Session,
    running: Sequence[WorkerView],
    given: Mapping[str, Any],
    *,
    error: UserError | None = None,
    warnings: Sequence[str] = (),
) -> HTMLResponse:
    suggestions = workers.suggestions(running)
    fields = [
        replace(field, suggestions=tuple(suggestions.get(field.name, ())))
        for field in _fields(TrainConfig, given)
    ]
    return page(
        request,
        "jobs/new.html",
        status=error.status if error else 200,
        error=error,
        warnings=warnings,
        has_workers=bool(running),
        recipes=list(workers.recipes(running)),
        given=given,
        releases=release_service.listing(session, limit=1000),
        first=[field for name in _MAIN_FIELDS for field in fields if field.name == name],
        more=[field for field in fields if field.name not in _MAIN_FIELDS],
    )


def _fields(model: type[BaseModel], given: Mapping[str, Any], prefix: str = "") -> list[Field]:
    """The form fields of a config; those of a nested config are prefixed with its name."""
    fields = []
    for name, info in model.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            fields += _fields(nested, given, f"{prefix}{name}.")
        else:
            fields.append(_field(f"{prefix}{name}", info, given))
    return fields


def _field(name: str, info: FieldInfo, given: Mapping[str, Any]) -> Field:
    kind: Literal["text", "integer", "number", "checkbox", "choice"] = "text"
    annotation = without_none(info.annotation)
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        kind, choices = "choice", tuple(str(choice) for choice in get_args(annotation))
    elif annotation is bool:
        kind = "checkbox"
    elif annotation is int:
        kind = "integer"
    elif annotation is float:
        kind = "number"
    # The field is empty for a default that depends on other fields, which the model fills in.
    has_default = info.default not in (None, PydanticUndefined)
    default = info.default if has_default else ""
    value = given.get(name, default)
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    value = "" if value is None else str(value) if kind == "choice" else value
    return Field(name, kind, value, info.description or "", choices, info.is_required())


@router.post("/jobs")
def create_job(
    request: Request, form: SentForm, session: WriteSession, settings: SettingsDep
) -> Response:
    """Queue a job. If no running worker can do it, only if the user has confirmed that."""
    running = workers.running(session, settings)
    checkboxes = [field.name for field in _fields(TrainConfig, {}) if field.kind == "checkbox"]
    given = {**form, **{name: form.is_checked(name) for name in checkboxes}}
    try:
        with session.begin_nested():
            body = parse_form(
                JobCreate,
                {key: form[key] for key in ("release_id", "priority") if key in form}
                | {"config": field_values(TrainConfig, form)},
            )
            warnings = matching.warnings(running, body.config) if running else []
            if warnings and not form.is_checked("anyway"):
                audit.mark_audited(request)  # nothing is stored
                return _form(request, session, running, given, warnings=warnings)
            row = service.create(session, body)
    except UserError as error:
        return _form(request, session, running, given, error=error)
    return redirect(f"/jobs/{row.id}", form)
