"""Test an unsaved prompt next to a saved version.

Answers to the unsaved prompt are not stored: each label is requested once, and the problems of the
answer are returned. The saved version works as for `describe`: stored answers are reused, new ones
stored.
"""

import asyncio
from collections.abc import Sequence

from sqlmodel import col, select

from enrich_service.core.errors import LanguageModelError
from enrich_service.core.money import known_sum
from enrich_service.core.storage.database import reading
from enrich_service.generations.models import Generation, GenerationStatus
from enrich_service.generations.service import line_of
from enrich_service.llm.protocol import Reply
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import PromptVersion
from enrich_service.prompts.schemas import PromptKind
from enrich_service.releases.schemas import VersionName
from enrich_service.runs.answering.build_generation import cost_usd
from enrich_service.runs.answering.enricher import Enricher
from enrich_service.runs.describe import TRIES, checked_label, describe
from enrich_service.runs.plan import Plan, check_subject, plan_with
from enrich_service.runs.schemas import Choice, Described, DescribeRequest, NamedLabel
from enrich_service.trials.schemas import (
    Totals,
    Trial,
    TrialRequest,
    Tried,
    TriedLabel,
)
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import attributes_of
from enrich_service.validation.judge import Judgement


async def try_prompt(enricher: Enricher, body: TrialRequest) -> Trial:
    """The answers of an unsaved prompt and of the saved version for each label.

    Raises:
        InvalidInput: the content of the prompt or a label is invalid.
        LanguageModelError: no label could be answered.
    """
    labels = [checked_label(label, number) for number, label in enumerate(body.labels, start=1)]
    plan = await asyncio.to_thread(_plan, enricher, body)  # compiles templates
    if body.against is not None:
        await asyncio.to_thread(_check_exists, enricher, body.against)  # fails before any paid call
    accepted_texts = AcceptedTextIndex()
    outcomes = await asyncio.gather(
        *(_answer(enricher, plan, label, accepted_texts) for label in labels)
    )
    errors = [outcome for outcome in outcomes if isinstance(outcome, LanguageModelError)]
    if len(errors) == len(outcomes):
        raise errors[0]
    candidate = [
        _failed([str(outcome)])
        if isinstance(outcome, LanguageModelError)
        else _tried(enricher, plan, *outcome)
        for outcome in outcomes
    ]
    number, against = None, None
    if body.against is not None:
        number, against = await _saved(enricher, body, body.against, labels)
    return Trial(
        content_hash=plan.version.content_hash,
        model=plan.model,
        against_version=number,
        labels=[
            TriedLabel(
                label=label.name,
                context=label.context,
                candidate=candidate[index],
                against=against[index] if against else None,
            )
            for index, label in enumerate(labels)
        ],
        candidate=_totals(candidate),
        against=_totals(against) if against else None,
    )


def _plan(enricher: Enricher, body: TrialRequest) -> Plan:
    """The plan of the unsaved prompt. Its version is a row that is never stored."""
    content = body.model_dump(include=set(prompts.CONTENT_FIELDS))
    prompts.check_content(**content)
    digest = prompts.content_hash(kind=body.kind, **content)
    version = PromptVersion(prompt_id=0, number=0, content_hash=digest, **content)
    name = body.against.prompt if body.against else "playground"
    choice = Choice(model=body.model, parameters=body.parameters)
    plan = plan_with(name, body.kind, version, choice, enricher.settings, enricher.source)
    check_subject(plan)
    return plan


def _check_exists(enricher: Enricher, saved: VersionName) -> None:
    with reading(enricher.engine) as session:
        prompts.resolve(session, saved.prompt, version=saved.version, alias=saved.alias)


async def _answer(
    enricher: Enricher, plan: Plan, label: NamedLabel, accepted_texts: AcceptedTextIndex
) -> tuple[Reply, Judgement] | LanguageModelError:
    item = plan.item(label.name, label.context, confusable=label.confusable)
    try:
        reply, judgement = await enricher.try_out(plan, item, accepted_texts, tries=TRIES)
    except LanguageModelError as error:
        return error
    if judgement.accepted:
        accepted_texts.add(label.name, plan.kind, judgement.texts)
    return reply, judgement


def _failed(problems: list[str]) -> Tried:
    return Tried(
        status=GenerationStatus.FAILED,
        cached=False,
        text=None,
        texts=[],
        attributes={},
        problems=problems,
        flags=[],
        raw_reply=None,
        attempts=1,
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=None,
        latency_ms=None,
    )


def _tried(enricher: Enricher, plan: Plan, reply: Reply, judgement: Judgement) -> Tried:
    """An answer of the unsaved prompt; a rejected one includes its text and problems."""
    attributes = attributes_of(judgement.parsed) if plan.kind == PromptKind.ATTRIBUTES else {}
    return Tried(
        status=GenerationStatus.ACCEPTED if judgement.accepted else GenerationStatus.REJECTED,
        cached=False,
        text=line_of(plan.kind, judgement.parsed),
        texts=list(judgement.texts),
        attributes={name: list(values) for name, values in attributes.items()},
        problems=list(judgement.problems),
        flags=list(judgement.flags),
        raw_reply=reply.text,
        attempts=1,
        prompt_tokens=reply.prompt_tokens or 0,
        completion_tokens=reply.completion_tokens or 0,
        cost_usd=cost_usd(enricher.settings.prices, (plan.model, reply.resolved_model), reply),
        latency_ms=reply.latency_ms,
    )


async def _saved(
    enricher: Enricher, body: TrialRequest, saved: VersionName, labels: Sequence[NamedLabel]
) -> tuple[int, list[Tried]]:
    """The number of the saved version, and its answers in the order of the labels."""
    request = DescribeRequest(
        labels=list(labels),
        prompt=saved.prompt,
        version=saved.version,
        alias=saved.alias,
        model=body.model,
        parameters=body.parameters,
    )
    found = await describe(enricher, request)
    rows = await asyncio.to_thread(
        _attempts, enricher, [described.generation_id for described in found]
    )
    tried = [
        _tried_from_stored(described, rows[described.generation_id])
        if described.generation_id is not None
        else _failed(described.problems)
        for described in found
    ]
    return found[0].prompt_version, tried


def _attempts(
    enricher: Enricher, generation_ids: Sequence[int | None]
) -> dict[int | None, list[Generation]]:
    """For each result, all generations with its dedupe key, including earlier rejected ones."""
    with reading(enricher.engine) as session:
        results = session.exec(select(Generation).where(col(Generation.id).in_(generation_ids)))
        return {
            row.id: list(
                session.exec(
                    select(Generation)
                    .where(Generation.dedupe_key == row.dedupe_key)
                    .order_by(col(Generation.id))
                )
            )
            for row in results.all()
        }


def _tried_from_stored(described: Described, rows: Sequence[Generation]) -> Tried:
    last = next(row for row in rows if row.id == described.generation_id)
    return Tried(
        status=described.status,
        cached=described.cached,
        text=described.text,
        texts=described.texts,
        attributes=described.attributes,
        problems=described.problems,
        flags=described.flags,
        raw_reply=last.raw_reply,
        attempts=len(rows),
        prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
        completion_tokens=sum(row.completion_tokens or 0 for row in rows),
        cost_usd=known_sum(row.cost_usd for row in rows),
        latency_ms=last.latency_ms,
    )


def _totals(tried: Sequence[Tried]) -> Totals:
    return Totals(
        accepted=sum(answer.status is GenerationStatus.ACCEPTED for answer in tried),
        rejected=sum(answer.status is GenerationStatus.REJECTED for answer in tried),
        failed=sum(answer.status is GenerationStatus.FAILED for answer in tried),
        prompt_tokens=sum(answer.prompt_tokens for answer in tried),
        completion_tokens=sum(answer.completion_tokens for answer in tried),
        cost_usd=known_sum(answer.cost_usd for answer in tried),
    )
