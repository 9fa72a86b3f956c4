"""Descriptions of a few labels, while the caller waits."""

import asyncio
from collections.abc import Mapping

from enrich_service.core.errors import Conflict, InvalidInput, LanguageModelError
from enrich_service.core.storage.database import reading
from enrich_service.core.text import check_line
from enrich_service.generations.claims import ClaimedByOther
from enrich_service.generations.models import Generation, GenerationFields, GenerationStatus
from enrich_service.generations.service import line_of
from enrich_service.labels.service import MAX_NAME
from enrich_service.prompts.schemas import PromptKind
from enrich_service.runs.answering.enricher import Caller, Enricher
from enrich_service.runs.plan import Item, Plan, check_subject, choose
from enrich_service.runs.schemas import Described, DescribeRequest, NamedLabel
from enrich_service.validation.answer import attributes_of, texts_of

TRIES = 3  # calls for one answer; few, because a user waits
POLL_INTERVAL_S = 0.2  # between reads of what other processes are requesting
MAX_SAMPLES = 16  # of one label, with `refresh`
NoAnswer = LanguageModelError | Conflict


async def describe(enricher: Enricher, body: DescribeRequest) -> list[Described]:
    """The texts of each label, in the order of the request; stored results are reused.

    Raises:
        LanguageModelError: no label could be answered, because of an error that affects all.
        Conflict: no label could be answered, because batch runs are requesting them; they take up
            to a day.
    """
    labels = [checked_label(label, number) for number, label in enumerate(body.labels, start=1)]
    plan = await asyncio.to_thread(_plan, enricher, body)
    samples = [
        [
            plan.item(label.name, label.context, sample_index=i, confusable=label.confusable)
            for i in range(MAX_SAMPLES)
        ]
        for label in labels
    ]
    keys = {item.key for items in samples for item in items}
    known = await enricher.store.results(keys)
    in_batches = await enricher.store.in_batches(keys - known.keys())
    outcomes = await asyncio.gather(
        *(
            _describe_label(enricher, plan, items, known, in_batches, refresh=body.refresh)
            for items in samples
        )
    )
    errors = [outcome for outcome in outcomes if isinstance(outcome, NoAnswer)]
    if len(errors) == len(outcomes):
        raise errors[0]
    return [
        _failed(enricher, plan, label, outcome)
        if isinstance(outcome, NoAnswer)
        else _described(plan, *outcome)
        for label, outcome in zip(labels, outcomes, strict=True)
    ]


def checked_label(label: str | NamedLabel, number: int) -> NamedLabel:
    """Validate the `number`-th label of a request. Raises InvalidInput for an invalid name."""
    if isinstance(label, str):
        label = NamedLabel(name=label)
    name = check_line(f"The name of label {number}", label.name, limit=MAX_NAME)
    context = label.context.strip() if label.context else None
    if context:
        check_line(f"The context of label {number}", context, limit=MAX_NAME)
    subject = f"A label confused with label {number}"
    confusable = [check_line(subject, other, limit=MAX_NAME) for other in label.confusable]
    return NamedLabel(name=name, context=context or None, confusable=confusable)


def _plan(enricher: Enricher, body: DescribeRequest) -> Plan:
    with reading(enricher.engine) as session:
        plan = choose(session, body, enricher.settings, enricher.source)
    check_subject(plan)
    return plan


async def _describe_label(
    enricher: Enricher,
    plan: Plan,
    samples: list[Item],
    known: Mapping[str, Generation],
    in_batches: Mapping[str, tuple[int, int]],
    *,
    refresh: bool,
) -> tuple[GenerationFields, bool] | NoAnswer:
    """The generation for a label and whether it was stored before, or the error."""
    results = [known[item.key] for item in samples if item.key in known]
    if not refresh and results:
        accepted = [row for row in results if row.status is GenerationStatus.ACCEPTED]
        return (accepted or results)[-1], True
    in_batch = next((in_batches[item.key] for item in samples if item.key in in_batches), None)
    if not refresh and in_batch:
        return _pending_in_batch(samples[0], run_id=in_batch[1])
    used_keys = known.keys() | in_batches.keys()
    item = next((item for item in samples if item.key not in used_keys), None)
    if item is None:
        raise InvalidInput(
            f"{samples[0].name!r} has {MAX_SAMPLES} samples of this prompt and model already: "
            "change the prompt or the parameters"
        )
    caller = Caller(urgent=True, tries=TRIES)
    while True:
        try:
            return await enricher.answer(plan, item, caller), False
        except ClaimedByOther:
            if batches := await enricher.store.in_batches([item.key]):
                return _pending_in_batch(item, run_id=batches[item.key][1])
            while await enricher.store.claimed([item.key], by_others=True):
                await asyncio.sleep(POLL_INTERVAL_S)
        except LanguageModelError as error:
            return error


def _pending_in_batch(item: Item, *, run_id: int) -> Conflict:
    return Conflict(
        f"{item.name!r} is part of a batch of run {run_id}: wait for its answer, "
        "or request another one now with refresh"
    )


def _described(plan: Plan, row: GenerationFields, cached: bool) -> Described:
    accepted = row.status is GenerationStatus.ACCEPTED
    parsed = row.parsed if accepted else None
    return Described(
        label=row.label_name,
        context=row.label_context,
        text=line_of(row.kind, parsed),
        texts=list(texts_of(row.kind, parsed)),
        attributes=_attributes(row.kind, parsed),
        status=row.status,
        cached=cached,
        problems=row.problems,
        flags=row.flags,
        generation_id=row.id,
        prompt=plan.prompt,
        prompt_version=plan.version.number,
        source=row.source,
        provider=row.provider,
        model=row.resolved_model or row.requested_model,
        cost_usd=row.cost_usd,
    )


def _attributes(kind: str, parsed: dict[str, object] | None) -> dict[str, list[str]]:
    if kind != PromptKind.ATTRIBUTES:
        return {}
    return {name: list(values) for name, values in attributes_of(parsed).items()}


def _failed(enricher: Enricher, plan: Plan, label: NamedLabel, error: NoAnswer) -> Described:
    return Described(
        label=label.name,
        context=label.context,
        text=None,
        texts=[],
        attributes={},
        status=GenerationStatus.FAILED,
        cached=False,
        problems=[str(error)],
        flags=[],
        generation_id=None,
        prompt=plan.prompt,
        prompt_version=plan.version.number,
        source=plan.source,
        provider=enricher.model.provider,
        model=plan.model,
        cost_usd=None,
    )
