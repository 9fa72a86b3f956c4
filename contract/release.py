"""A release: an immutable, content-addressed choice of texts for every label of a label set."""

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class ReleaseLabel(BaseModel):
    """A label with its released texts; missing texts are empty, never placeholders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, Field(min_length=1, description="Folder name of the class, e.g. a wnid")]
    name: Annotated[str, Field(min_length=1, description="Human name, e.g. 'harlequin duck'")]
    context: Annotated[str | None, Field(description="Kind of the class, e.g. 'a bird'")] = None
    description: Annotated[str | None, Field(description="One sentence of visible attributes")] = (
        None
    )
    attributes: Annotated[
        dict[str, tuple[str, ...]], Field(description="Values by attribute name")
    ] = {}
    sentences: Annotated[
        tuple[str, ...], Field(description="Diverse sentences about the class")
    ] = ()
    captions: Annotated[tuple[str, ...], Field(description="Captions of typical images")] = ()
    look_alikes: Annotated[
        tuple[str, ...], Field(description="Names of other classes that look like this class")
    ] = ()


class TextSource(BaseModel):
    """Provenance of a released text, to find and cite its generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    field: Annotated[str, Field(description="Field of the label with this text")]
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
    cost_usd: Annotated[
        float | None, Field(description="Of the answer; null if the model's price is unknown")
    ] = None


class Release(BaseModel):
    """The texts of a label set that training reads. `hash` covers only `labels`."""

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

    Ids, times and provenance are excluded, so that equal texts have equal hashes everywhere.
    """
    # Excluded if empty, so that releases without look-alikes keep their hashes.
    body = [
        label.model_dump(mode="json", exclude=None if label.look_alikes else {"look_alikes"})
        for label in labels
    ]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
