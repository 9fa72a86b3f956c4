"""A release: an immutable, content-addressed choice of texts for every label of a label set."""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class ReleaseLabel(BaseModel):
    """One label and its released texts; what a label lacks is empty, never a placeholder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, Field(min_length=1, description="Folder name of the class, e.g. a wnid")]
    name: Annotated[str, Field(min_length=1, description="Human name, e.g. 'harlequin duck'")]
    context: Annotated[str | None, Field(description="What kind of thing, e.g. 'a bird'")] = None
    description: Annotated[str | None, Field(description="One sentence of visible attributes")] = (
        None
    )
    attributes: Annotated[
        dict[str, tuple[str, ...]], Field(description="Attribute name to its values")
    ] = {}
    sentences: Annotated[tuple[str, ...], Field(description="Diverse sentences on the class")] = ()
    captions: Annotated[tuple[str, ...], Field(description="Captions of typical images")] = ()
    look_alikes: Annotated[
        tuple[str, ...], Field(description="Names of other classes that look like this one")
    ] = ()


class TextSource(BaseModel):
    """Where one released text came from: enough to find the generation and to cite it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    field: Annotated[str, Field(description="Field of the label that it fills")]
    source: Annotated[str, Field(description="model, replay, person or import")]
    generation_id: int | None = None
    prompt: str | None = None
    prompt_version: int | None = None
    prompt_hash: str | None = None
    requested_model: str | None = None
    resolved_model: str | None = None
    author: str | None = None
    created_at: AwareDatetime | None = None
    language: str | None = None


class Release(BaseModel):
    """The only thing that training reads. `hash` covers `labels` alone (see `release_hash`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    name: str
    label_set: str
    hash: str
    message: str = ""
    author: str = ""
    created_at: AwareDatetime
    labels: tuple[ReleaseLabel, ...]
    sources: tuple[TextSource, ...] = ()


def release_hash(labels: Iterable[ReleaseLabel]) -> str:
    """SHA-256 (hex) of the labels as canonical JSON, in label order.

    Ids, times and provenance stay out, so that the same texts imported elsewhere hash the same.
    """
    # Left out where empty, so that releases without look-alikes keep their hashes.
    body = [
        label.model_dump(mode="json", exclude=None if label.look_alikes else {"look_alikes"})
        for label in labels
    ]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
