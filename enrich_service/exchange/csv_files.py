"""CSV: import and export of releases and generations, export of reviews and confusable labels.

Cells contain lists and objects as JSON.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from sqlmodel import Session

from contract import Release, ReleaseLabel, first_error_line, release_hash
from enrich_service.core import spreadsheet
from enrich_service.core.errors import InvalidInput
from enrich_service.exchange.jsonl_export import generation_records, reviews
from enrich_service.exchange.jsonl_import import Importer
from enrich_service.exchange.schemas import GenerationRecord, Imported
from enrich_service.labels import service as label_service
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow

_LISTS = ("attributes", "sentences", "captions", "look_alikes")
RELEASE_COLUMNS = ("key", "name", "context", "description", *_LISTS)
GENERATION_COLUMNS = tuple(name for name in GenerationRecord.model_fields if name != "record")
REVIEW_COLUMNS = ("generation", "kind", "label_name", "action", "reason", "author", "at")
CONFUSABLE_COLUMNS = ("key", "confusable")


def release_csv(release: Release) -> Iterator[str]:
    """The texts of a release as lines of CSV, for `import_release_csv`."""
    rows = (
        [label.key, label.name, label.context, label.description]
        + [getattr(label, name) or None for name in _LISTS]
        for label in release.labels
    )
    return spreadsheet.write(RELEASE_COLUMNS, rows)


def import_release_csv(
    session: Session, data: bytes, *, name: str, label_set: str, author: str = ""
) -> tuple[ReleaseRow, bool]:
    """Create a release from a CSV file. Returns it, and whether it is new.

    A CSV file has only the texts; their provenance is only in the JSON format.
    """
    labels = []
    for number, row in enumerate(spreadsheet.read(data, RELEASE_COLUMNS, ["key", "name"]), start=1):
        try:
            labels.append(
                ReleaseLabel.model_validate_json(
                    _json(
                        {
                            column: json.loads(cell) if column in _LISTS else cell
                            for column, cell in row.items()
                            if cell
                        }
                    )
                )
            )
        except (ValidationError, ValueError, RecursionError) as error:
            raise InvalidInput(f"Row {number} of the CSV file: {_error_line(error)}") from error
    release = Release(
        id=0,
        name=name,
        label_set=label_set,
        hash=release_hash(labels),
        author=author,
        created_at=datetime.now(UTC),
        labels=tuple(labels),
    )
    return release_service.import_release(session, release)


def generations_csv(session: Session, label_set: str | None = None) -> Iterator[str]:
    """All generations (of one label set) with provenance, for `import_generations_csv`."""
    rows = (
        [record[name] for name in GENERATION_COLUMNS]
        for record in (
            record.model_dump(mode="json") for record in generation_records(session, label_set)
        )
    )
    return spreadsheet.write(GENERATION_COLUMNS, rows)


def import_generations_csv(session: Session, data: bytes) -> Imported:
    """Import generations; their prompt versions and label sets must exist.

    Existing rows are unchanged. Raises InvalidInput for the first invalid row.
    """
    importer = Importer(session, use_existing=True)
    rows = spreadsheet.read(data, GENERATION_COLUMNS, ["id", "kind", "label_name"])
    for number, row in enumerate(rows, start=1):
        try:
            record = GenerationRecord.model_validate_json(
                _json({name: _value(name, cell) for name, cell in row.items() if cell})
            )
            importer.import_record(record)
        except (ValidationError, ValueError, RecursionError) as error:
            raise InvalidInput(f"Row {number} of the CSV file: {_error_line(error)}") from error
        except InvalidInput as error:
            raise InvalidInput(f"Row {number} of the CSV file: {error}") from error
    session.flush()
    return importer.result


def reviews_csv(session: Session, label_set: str | None = None) -> Iterator[str]:
    """Reviews: who approved, rejected, locked or unlocked which text, and why; oldest first.

    `generation` is the id in `generations_csv`, which also contains edits and their authors.
    """
    rows = (
        (
            *(review.generation_id, kind, name),
            *(review.action, review.reason, review.author, review.at.isoformat()),
        )
        for review, kind, name in reviews(session, label_set)
    )
    return spreadsheet.write(REVIEW_COLUMNS, rows)


def confusable_csv(session: Session, label_set: str) -> Iterator[str]:
    """Keys of confusable labels, one pair per line, most similar first."""
    labels = label_service.labels_of(session, label_service.get(session, label_set))
    pairs = zip(labels, label_service.confusable_of(session, labels), strict=True)
    rows = [(label.key, other.key) for label, others in pairs for other in others]
    return spreadsheet.write(CONFUSABLE_COLUMNS, rows)


def _is_structured(annotation: Any) -> bool:  # noqa: ANN401 - any type
    return any(get_origin(type_) in (dict, list) for type_ in (annotation, *get_args(annotation)))


_STRUCTURED = frozenset(
    name
    for name, field in GenerationRecord.model_fields.items()
    if _is_structured(field.annotation)
)


def _value(name: str, cell: str) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(cell) if name in _STRUCTURED else cell


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON
    return json.dumps(value, ensure_ascii=False)


def _error_line(error: Exception) -> str:
    """The first error, on one line."""
    if isinstance(error, ValidationError):
        return first_error_line(error, "")
    return f"a cell is not valid JSON: {error}"
