"""Tables of runs, generations and reviews.

A generation is never changed and never deleted.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ColumnElement, Index, text
from sqlmodel import Field, SQLModel, col, func

from enrich_service.core.storage.database import UtcDateTime, enum_column, utcnow
from enrich_service.validation.answer import ENGLISH


class RunState(StrEnum):
    """queued → running → succeeded | failed | cancelled; `paused` can be resumed."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunMode(StrEnum):
    """How a run sends requests: live, or as batch files answered within a day."""

    LIVE = "live"
    BATCH = "batch"


class Run(SQLModel, table=True):
    """The enrichment of a label set with one prompt version and model config."""

    __tablename__ = "run"

    id: int | None = Field(default=None, primary_key=True)
    label_set_id: int = Field(foreign_key="label_set.id", index=True)
    prompt_version_id: int = Field(foreign_key="prompt_version.id", index=True)
    model: str
    parameters: dict[str, Any] = Field(sa_type=JSON)  # as sent: temperature, max_tokens, …
    variables: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # n, language, if set
    mode: RunMode = Field(default=RunMode.LIVE, sa_type=enum_column(RunMode))
    images: str | None = None  # folder of class folders, for a run on images
    samples: int = 1  # generations per label or image; sample indices 0 … samples − 1
    concurrency: int = 8
    # A run that would spend more pauses; None is no limit.
    budget_usd: float | None = None
    budget_tokens: int | None = None
    # Counted in the transaction that stores the generation, so that they agree after a kill.
    total: int = 0  # labels (or images) × samples
    cached: int = 0  # answered by a generation that another run or request had made
    accepted: int = 0
    rejected: int = 0
    failed: int = 0  # without an answer in the last pass; a retry requests them again
    calls: int = 0  # requests sent, transport retries included
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None  # None while no call had a known price
    state: RunState = Field(default=RunState.QUEUED, sa_type=enum_column(RunState))
    error: str | None = None
    # The process that executes the run renews this lease; another process resumes an expired run.
    owner: str | None = None
    owner_expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    author: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class RunText(SQLModel, table=True):
    """A text that a run rewrites for a label, for example a text to translate."""

    __tablename__ = "run_text"

    run_id: int = Field(foreign_key="run.id", primary_key=True)
    label_id: int = Field(foreign_key="label.id", primary_key=True)
    texts: list[str] = Field(sa_type=JSON)
    generation_id: int | None = Field(default=None, foreign_key="generation.id")  # they came from


class Batch(SQLModel, table=True):
    """A file of requests of a run, which the provider answers within a day at half the price.

    Its row is stored before anything is sent, so that nothing is sent twice.
    """

    __tablename__ = "batch"

    id: int | None = Field(default=None, primary_key=True)
    run_id: int = Field(foreign_key="run.id", index=True)
    name: str  # of the file; identifies it at the provider
    provider: str
    file_id: str | None = None  # at the provider, once uploaded
    remote_id: str | None = None  # of the batch at the provider, once created
    # The request format that the server accepts; retries by a later process use the same.
    response_format: str  # as Generation.response_format
    length_parameter: str = "max_tokens"  # or max_completion_tokens
    status: str = "preparing"  # later the status at the provider
    requests: int
    completed: int = 0  # as the provider counts
    failed: int = 0
    error: str | None = None  # why it failed, or why it is retried later
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # all answers stored


class BatchRequest(SQLModel, table=True):
    """One pending request of a batch; its row is deleted when its answer is stored."""

    __tablename__ = "batch_request"

    batch_id: int = Field(foreign_key="batch.id", primary_key=True)
    dedupe_key: str = Field(primary_key=True, index=True)
    label_id: int = Field(foreign_key="label.id")
    sample_index: int
    confusable: list[str] = Field(default_factory=list, sa_type=JSON)  # as sent
    texts: list[str] = Field(default_factory=list, sa_type=JSON)  # to be rewritten, if any
    parent_id: int | None = Field(default=None, foreign_key="generation.id")  # they came from


class Claim(SQLModel, table=True):
    """A request that a process is making; others wait for its answer or the end of its lease."""

    __tablename__ = "generation_claim"

    dedupe_key: str = Field(primary_key=True)
    owner: str  # the process
    expires_at: datetime = Field(sa_type=UtcDateTime)  # renewed while the request is pending


class RunFinding(SQLModel, table=True):
    """How many answers of a run violated a rule or were flagged by it."""

    __tablename__ = "run_finding"

    run_id: int = Field(foreign_key="run.id", primary_key=True)
    verdict: str = Field(primary_key=True)  # problem | flag
    rule: str = Field(primary_key=True)
    answers: int


class GenerationSource(StrEnum):
    """The author of a text."""

    MODEL = "model"
    REPLAY = "replay"
    PERSON = "person"
    IMPORT = "import"


class GenerationStatus(StrEnum):
    """The outcome of one language-model call.

    `retried`: rejected, and requested again with the reason; `rejected`: the last attempt was
    rejected; `failed`: no answer, which is not a result.
    """

    ACCEPTED = "accepted"
    RETRIED = "retried"
    REJECTED = "rejected"
    FAILED = "failed"


class GenerationFields(SQLModel):
    """The outcome of one language-model call, edit or import for one label.

    Stored by a Core insert: building an ORM row takes as long as judging the answer.
    """

    id: int | None = None  # None until stored
    source: GenerationSource = Field(sa_type=enum_column(GenerationSource))
    status: GenerationStatus = Field(sa_type=enum_column(GenerationStatus))
    kind: str  # as Prompt.kind
    # The label at the time of the request; label_id only for a label of a label set.
    label_id: int | None = Field(default=None, foreign_key="label.id", index=True)
    label_name: str
    label_context: str | None = None
    image: str | None = None  # of a caption: CLASS/FILE below the run's folder
    image_hash: str | None = Field(default=None, index=True)  # SHA-256 of its bytes
    run_id: int | None = Field(default=None, foreign_key="run.id", index=True)
    prompt_version_id: int | None = Field(default=None, foreign_key="prompt_version.id")
    dedupe_key: str | None = Field(default=None, index=True)
    sample_index: int = 0
    attempt: int = 1
    calls: int = 1  # requests sent for this answer, transport retries included
    # Of an edit or a translation: the text that it replaces or translates.
    parent_id: int | None = Field(default=None, foreign_key="generation.id")
    provider: str | None = None  # scheme, host and port of the base URL, or replay:FILE
    requested_model: str | None = None
    resolved_model: str | None = None
    fingerprint: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    variables: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # n, language, if set
    messages: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)  # as sent
    response_format: str | None = None  # json_schema | json_object | text
    raw_reply: str | None = None
    parsed: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    problems: list[str] = Field(default_factory=list, sa_type=JSON)  # why it was not accepted
    flags: list[str] = Field(default_factory=list, sa_type=JSON)  # accepted, but worth a review
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    author: str = ""
    created_at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)


class Generation(GenerationFields, table=True):
    """The stored generations."""

    __tablename__ = "generation"
    __table_args__ = (
        # At most one result per key: a second request is answered from the first.
        Index(
            "uq_generation_result",
            "dedupe_key",
            unique=True,
            sqlite_where=text("status IN ('accepted', 'rejected')"),
            postgresql_where=text("status IN ('accepted', 'rejected')"),
        ),
        Index("ix_generation_label_prompt", "label_name", "prompt_version_id"),
    )

    id: int | None = Field(default=None, primary_key=True)


# The language of a generation's texts, in any query that reads it.
LANGUAGE: ColumnElement[str] = func.coalesce(
    col(Generation.variables)["language"].as_string(), ENGLISH
)


def language_of(source: GenerationFields | Run) -> str:
    """The language of the texts of a generation, or of a run."""
    return str(source.variables.get("language", ENGLISH))


class ReviewAction(StrEnum):
    """A person's verdict on a text."""

    APPROVE = "approve"
    REJECT = "reject"
    LOCK = "lock"
    UNLOCK = "unlock"


class TextReview(SQLModel, table=True):
    """One entry of the review log, which is append-only."""

    __tablename__ = "text_review"

    id: int | None = Field(default=None, primary_key=True)
    generation_id: int = Field(foreign_key="generation.id", index=True)
    action: ReviewAction = Field(sa_type=enum_column(ReviewAction))
    reason: str = ""
    author: str = ""
    at: datetime = Field(default_factory=utcnow, sa_type=UtcDateTime)
