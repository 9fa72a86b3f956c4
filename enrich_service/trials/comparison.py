"""Comparison of stored answers of two prompt versions or models for a label set.

Each side shows the text of the version that a release would contain: the newest accepted one; for
sentences and captions the union of the samples. Edits by people are excluded, since prompts and
models are compared. Counts and costs include all attempts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, select

from contract import Release, Report
from enrich_service.core.errors import Conflict, NotFound
from enrich_service.core.money import known_sum
from enrich_service.generations.models import Generation, GenerationStatus
from enrich_service.generations.queries import MODEL_SOURCES, SAME_LABEL
from enrich_service.generations.service import line_of
from enrich_service.jobs import reports
from enrich_service.jobs.models import JobArtifact, JobRow
from enrich_service.labels import service as label_service
from enrich_service.labels.models import Label, LabelLine, LabelSet
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import UNION_KINDS, PromptKind
from enrich_service.releases import service as release_service
from enrich_service.releases.models import ReleaseRow
from enrich_service.releases.schemas import ReleaseSource
from enrich_service.trials.schemas import (
    ComparedLabel,
    ComparedSide,
    ComparedText,
    Comparison,
    SideDiagnostics,
)
from enrich_service.validation.answer import texts_of
from enrich_service.validation.token_count import estimate_tokens

TEACHER_TOKENS = 77  # the context length of CLIP
MAX_JOBS = 50  # newest jobs that are searched for diagnostics


class _Answer(NamedTuple):
    """The required columns of a generation. Loading ORM objects of 10,000 labels takes seconds."""

    id: int
    status: GenerationStatus
    kind: str
    sample_index: int
    parsed: Mapping[str, Any] | None
    problems: Sequence[str]
    flags: Sequence[str]
    calls: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    latency_ms: float | None


_COLUMNS = tuple(getattr(Generation, name) for name in _Answer._fields)


@dataclass
class _Side:
    """A prompt version and optionally a model, with stored answers by label id, oldest first."""

    prompt: Prompt
    version: PromptVersion
    model: str | None
    answers: defaultdict[int | None, list[_Answer]] = field(
        default_factory=lambda: defaultdict(list)
    )


def compare(
    session: Session,
    label_set: str,
    a: ReleaseSource,
    b: ReleaseSource,
    artifacts: Path,
    *,
    limit: int = 100,
    offset: int = 0,
) -> Comparison:
    """Compare both sides for `label_set`, with one page of labels.

    `artifacts`: the artifact folder. Raises Conflict if the prompts are of different kinds.
    """
    chosen = label_service.get(session, label_set)
    labels = label_service.lines_of(session, chosen)
    left, right = _sides_with_answers(session, chosen, a, b)
    page = labels[offset : offset + limit]
    next_offset = offset + len(page)
    return Comparison(
        label_set=label_set,
        kind=PromptKind(left.prompt.kind),
        a=_side_view(left, labels, _diagnostics(session, chosen, left, artifacts)),
        b=_side_view(right, labels, _diagnostics(session, chosen, right, artifacts)),
        labels=_compare_labels(left, right, page),
        total=len(labels),
        next_offset=next_offset if page and next_offset < len(labels) else None,
    )


def summaries(
    session: Session, label_set: str, a: ReleaseSource, b: ReleaseSource, artifacts: Path
) -> tuple[ComparedSide, ComparedSide]:
    """The totals of both sides for `label_set`; see `compare`."""
    chosen = label_service.get(session, label_set)
    labels = label_service.lines_of(session, chosen)
    left, right = _sides_with_answers(session, chosen, a, b)
    return (
        _side_view(left, labels, _diagnostics(session, chosen, left, artifacts)),
        _side_view(right, labels, _diagnostics(session, chosen, right, artifacts)),
    )


def texts(
    session: Session,
    label_set: str,
    a: ReleaseSource,
    b: ReleaseSource,
    *,
    limit: int,
    offset: int,
) -> tuple[list[ComparedLabel], int]:
    """The texts of both sides for one page of labels, and the number of labels."""
    chosen = label_service.get(session, label_set)
    labels = label_service.lines_of(session, chosen)
    page = labels[offset : offset + limit]
    left, right = _sides(session, a, b)
    for side in (left, right):
        _read(session, side, col(Label.id).in_([label.id for label in page]))
    return _compare_labels(left, right, page), len(labels)


def _compare_labels(left: _Side, right: _Side, labels: Sequence[LabelLine]) -> list[ComparedLabel]:
    return [
        ComparedLabel(key=label.key, name=label.name, a=_text(left, label), b=_text(right, label))
        for label in labels
    ]


def _sides_with_answers(
    session: Session, label_set: LabelSet, a: ReleaseSource, b: ReleaseSource
) -> tuple[_Side, _Side]:
    """Both sides with their answers for a whole label set."""
    left, right = _sides(session, a, b)
    for side in (left, right):
        _read(session, side, col(Label.label_set_id) == label_set.id)
    return left, right


def _sides(session: Session, a: ReleaseSource, b: ReleaseSource) -> tuple[_Side, _Side]:
    """Both sides without their answers."""
    left, right = _side(session, a), _side(session, b)
    if left.prompt.kind != right.prompt.kind:
        raise Conflict(
            f"{a.prompt!r} is of the kind {left.prompt.kind}, {b.prompt!r} of the kind "
            f"{right.prompt.kind}: "
            "compare prompts of one kind."
        )
    return left, right


def _side(session: Session, source: ReleaseSource) -> _Side:
    version = prompts.resolve(session, source.prompt, version=source.version, alias=source.alias)
    return _Side(session.get_one(Prompt, version.prompt_id), version, source.model)


def _read(session: Session, side: _Side, condition: sa.ColumnElement[bool]) -> None:
    """Load the answers of `side` for the labels that meet `condition`."""
    query = (
        sa.select(col(Label.id), *_COLUMNS)
        .join(Generation, SAME_LABEL)
        .where(
            condition,
            col(Generation.prompt_version_id) == side.version.id,
            col(Generation.source).in_(MODEL_SOURCES),
        )
        .order_by(col(Generation.id))
    )
    if side.model is not None:
        query = query.where(col(Generation.requested_model) == side.model)
    for label_id, *values in session.execute(query):
        side.answers[label_id].append(_Answer(*values))


def _results(side: _Side, label: LabelLine) -> list[_Answer]:
    """The answers to show for a label: the accepted ones, else the last one."""
    rows = side.answers.get(label.id, [])
    accepted = [row for row in rows if row.status is GenerationStatus.ACCEPTED]
    if not accepted:
        return rows[-1:]
    if side.prompt.kind not in UNION_KINDS:
        return accepted[-1:]
    by_sample = {row.sample_index: row for row in accepted}  # the newest of each
    return [row for _, row in sorted(by_sample.items())]


def _texts(rows: Sequence[_Answer]) -> list[str]:
    accepted = [row for row in rows if row.status is GenerationStatus.ACCEPTED]
    return list(dict.fromkeys(text for row in accepted for text in texts_of(row.kind, row.parsed)))


def _teacher_tokens(texts: Sequence[str]) -> int:
    return max(map(estimate_tokens, texts), default=0)


def _text(side: _Side, label: LabelLine) -> ComparedText | None:
    results = _results(side, label)
    if not results:
        return None
    rows, last, texts = side.answers[label.id], results[-1], _texts(results)
    accepted = last.status is GenerationStatus.ACCEPTED
    return ComparedText(
        status=last.status,
        generation_ids=[row.id for row in results],
        text=line_of(last.kind, results[0].parsed) if accepted else None,
        texts=texts,
        problems=last.problems,
        flags=[flag for row in results for flag in row.flags],
        characters=sum(map(len, texts)),
        teacher_tokens=_teacher_tokens(texts),
        attempts=len(rows),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
        completion_tokens=sum(row.completion_tokens or 0 for row in rows),
        cost_usd=known_sum(row.cost_usd for row in rows),
    )


def _side_view(
    side: _Side, labels: Sequence[LabelLine], diagnostics: SideDiagnostics | None
) -> ComparedSide:
    results = [_results(side, label) for label in labels]
    statuses = Counter(answers[-1].status for answers in results if answers)
    texts = [label_texts for label_texts in map(_texts, results) if label_texts]
    tokens = [_teacher_tokens(label_texts) for label_texts in texts]
    # Each answer once, since a name may occur twice in a label set.
    rows = list({row.id: row for answers in side.answers.values() for row in answers}.values())
    latencies = [row.latency_ms for row in rows if row.latency_ms is not None]
    return ComparedSide(
        prompt=side.prompt.name,
        version=side.version.number,
        content_hash=side.version.content_hash,
        model=side.model,
        accepted=statuses[GenerationStatus.ACCEPTED],
        rejected=statuses[GenerationStatus.REJECTED] + statuses[GenerationStatus.RETRIED],
        failed=statuses[GenerationStatus.FAILED],
        missing=sum(not answers for answers in results),
        mean_characters=_mean([sum(map(len, label_texts)) for label_texts in texts]),
        mean_teacher_tokens=_mean(tokens),
        too_long=sum(count > TEACHER_TOKENS for count in tokens),
        failures=_rules(row.problems for row in rows if row.status is not GenerationStatus.FAILED),
        flagged=_rules(row.flags for row in rows if row.status is GenerationStatus.ACCEPTED),
        calls=sum(row.calls for row in rows),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
        completion_tokens=sum(row.completion_tokens or 0 for row in rows),
        cost_usd=known_sum(row.cost_usd for row in rows),
        mean_latency_ms=_mean(latencies),
        diagnostics=diagnostics,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rules(problems: Iterable[Sequence[str]]) -> dict[str, int]:
    """Number of answers by rule, which is the part of a problem before the colon."""
    counted = Counter(
        rule for lines in problems for rule in {line.partition(":")[0] for line in lines}
    )
    return dict(sorted(counted.items()))


def _diagnostics(
    session: Session, label_set: LabelSet, side: _Side, artifacts: Path
) -> SideDiagnostics | None:
    """The diagnostics of the newest job whose release has texts of this side only."""
    query = (
        select(JobRow.id, ReleaseRow)
        .join(ReleaseRow, col(ReleaseRow.id) == col(JobRow.release_id))
        .join(JobArtifact, col(JobArtifact.job_id) == col(JobRow.id))
        .where(ReleaseRow.label_set_id == label_set.id, JobArtifact.name == "report.json")
        .order_by(col(JobRow.id).desc())
        .limit(MAX_JOBS)
    )
    for job_id, row in session.exec(query):
        release = release_service.parsed(row)
        labels = _labels_from_side(release, side)
        if job_id is None or not labels:
            continue
        try:
            report = reports.read(session, artifacts, job_id)
        except (Conflict, NotFound):
            continue  # unreadable: try the next older job
        return _side_diagnostics(report, release, job_id, labels)
    return None


def _labels_from_side(release: Release, side: _Side) -> int:
    """Number of labels of a release with a text of this side; 0 if any text has another source."""
    sources = [source for source in release.sources if source.field == side.prompt.kind]
    own = [
        source.key
        for source in sources
        if source.prompt_hash == side.version.content_hash
        and source.source in MODEL_SOURCES
        and side.model in (None, source.requested_model)
    ]
    return len(set(own)) if len(own) == len(sources) else 0


def _side_diagnostics(
    report: Report, release: Release, job_id: int, labels: int
) -> SideDiagnostics | None:
    strategy = report.config.text_strategy
    bank = next(
        (diagnostics for diagnostics in report.diagnostics if diagnostics.text == strategy), None
    )
    if bank is None or strategy == "name":  # a job on bare names does not measure texts
        return None
    return SideDiagnostics(
        job_id=job_id,
        release=release.name,
        classes=bank.classes,
        labels=labels,
        text=bank.text,
        mean_cosine=bank.mean_cosine,
        mean_nearest_cosine=bank.mean_nearest_cosine,
        effective_rank=bank.effective_rank,
        confusable=list(bank.confusable),
    )
