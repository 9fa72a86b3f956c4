"""The JSON files of two other papers: class name → list of texts.

"Classify by description" (Menon and Vondrick, ICLR 2023) has short descriptors, here the attribute
`features`; CuPL (Pratt et al., ICCV 2023) has sentences.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlmodel import Session, select

from contract import Release, ReleaseLabel, first_error_line
from enrich_service.core.errors import Conflict, InvalidInput
from enrich_service.core.text import check_text, shortened, unique_keys
from enrich_service.exchange.schemas import Imported
from enrich_service.exchange.text_pairs import store_imported_texts
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelSet
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts.schemas import PromptKind

FEATURES = "features"  # the attribute of the prompt `attribute-list`
_FILE = TypeAdapter(dict[str, list[str]])
MAX_TEXTS = 1000  # for one class


def descriptors(release: Release) -> dict[str, list[str]]:
    """The attributes of a release: class name to short descriptors.

    Features are unchanged; other attributes are prefixed with their name ("shape: round").
    """
    return _lists(
        release,
        lambda label: [
            value if name == FEATURES else f"{name.replace('_', ' ')}: {value}"
            for name, values in label.attributes.items()
            for value in values
        ],
    )


def sentences(release: Release) -> dict[str, list[str]]:
    """The sentences of a release: class name to sentences.

    A label without sentences gets its description.
    """
    return _lists(
        release,
        lambda label: list(label.sentences) or ([label.description] if label.description else []),
    )


def _lists(release: Release, texts: Callable[[ReleaseLabel], list[str]]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for label in release.labels:
        if label.name in lists:
            raise Conflict(
                f"Two labels of release {release.name!r} are called {label.name!r}, but this "
                "format identifies classes by name: export the release as JSON or CSV."
            )
        lists[label.name] = texts(label)
    return lists


def to_json(lists: Mapping[str, list[str]]) -> str:
    """The content of such a file."""
    return json.dumps(lists, indent=2, ensure_ascii=False) + "\n"


def import_lists(
    session: Session,
    lists: Mapping[str, list[str]],
    *,
    label_set: str,
    kind: PromptKind,
    author: str = "",
    check_texts: bool = True,
) -> Imported:
    """Import texts from such a file, as `sentences` or `attributes`, for the labels of `label_set`.

    A missing label set is created from the names in the file. An empty list adds no text. Raises
    InvalidInput if the file names a class that the label set lacks.
    """
    check_text("The author", author, limit=200)
    lists = _checked(lists)
    result = Imported()
    row = session.exec(select(LabelSet).where(LabelSet.name == label_set)).one_or_none()
    if row is None:
        labels = [LabelIn(name=name) for name in lists]
        row = label_service.create(session, label_set, labels)
        result.label_sets.append(label_set)
    by_name: dict[str, list[Label]] = {}
    for label in label_service.labels_of(session, row):
        by_name.setdefault(label.name, []).append(label)
    if unknown := [name for name in lists if name.strip() not in by_name]:
        raise InvalidInput(
            f"Label set {label_set!r} has no label called {shortened(unknown[0])}"
            + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else "")
            + ": correct the file, or extend the label set"
        )
    field = FEATURES if kind is PromptKind.ATTRIBUTES else kind.value
    texts_by_label: list[tuple[Label, dict[str, Any], str]] = [
        (label, {field: texts}, json.dumps(texts, ensure_ascii=False))
        for name, texts in lists.items()
        if texts
        for label in by_name[name.strip()]
    ]
    store_imported_texts(
        session, result, kind, texts_by_label, author=author, check_texts=check_texts
    )
    return result


def read(data: str) -> dict[str, list[str]]:
    """Parse such a file. Raises InvalidInput."""
    try:
        return _FILE.validate_python(
            json.loads(data, object_pairs_hook=unique_keys("lists")), strict=True
        )
    except (ValueError, RecursionError) as error:
        reason = first_error_line(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidInput(
            f'The file is not a JSON object like {{"teal": ["a green stripe"]}}: {reason}'
        ) from error


def _checked(lists: Mapping[str, list[str]]) -> dict[str, list[str]]:
    for name, texts in lists.items():
        if len(texts) > MAX_TEXTS:
            raise InvalidInput(
                f"{shortened(name)} has {len(texts)} texts; at most {MAX_TEXTS} are allowed"
            )
        for text in texts:
            check_text(f"A text of {shortened(name)}", text, limit=20_000)
    return {name: [" ".join(text.split()) for text in texts] for name, texts in lists.items()}
