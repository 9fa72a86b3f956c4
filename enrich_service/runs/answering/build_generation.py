"""Builds the generation to store from the outcome of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enrich_service.core.errors import ModelBusy, RequestRejected
from enrich_service.core.storage.database import utcnow
from enrich_service.generations.models import (
    GenerationFields,
    GenerationStatus,
)
from enrich_service.llm.images import ImageFile
from enrich_service.llm.protocol import ChatRequest, Reply
from enrich_service.runs.answering.attempt import ATTEMPTS, PROTOCOL_PROBLEM, Attempt
from enrich_service.runs.plan import Item, Plan
from enrich_service.validation.accepted_texts import AcceptedTextIndex
from enrich_service.validation.answer import ENGLISH
from enrich_service.validation.judge import Judgement, Subject, judge

Outcome = Reply | ModelBusy | RequestRejected
Prices = Mapping[str, tuple[float, float]]  # as Settings.prices


@dataclass(frozen=True)
class BuildContext:
    """Shared by all generations of one plan."""

    plan: Plan
    accepted_texts: AcceptedTextIndex  # of the plan's prompt version
    provider: str
    prices: Prices
    run_id: int | None = None


def build_generation(
    context: BuildContext, item: Item, attempt: Attempt, request: ChatRequest, outcome: Outcome
) -> GenerationFields:
    """The checked generation for the outcome of `request`; `retried` if another attempt follows."""
    plan = context.plan
    status, messages = GenerationStatus.FAILED, request.messages
    if isinstance(outcome, Reply):
        judgement = judge_reply(plan, item, outcome, context.accepted_texts)
        fields, messages = reply_fields(context, outcome, judgement), outcome.messages
        if judgement.accepted:
            status = GenerationStatus.ACCEPTED
            context.accepted_texts.reserve(item.name, plan.kind, judgement.texts)
        elif attempt.number < ATTEMPTS:
            status = GenerationStatus.RETRIED
        elif outcome.problem is None:
            status = GenerationStatus.REJECTED
    else:
        fields = {"problems": [str(outcome)], "flags": [], "calls": outcome.calls}
    return GenerationFields(
        source=plan.source,
        status=status,
        kind=plan.kind,
        label_id=item.label_id,
        label_name=item.name,
        label_context=item.context,
        image=item.image.name if item.image else None,
        image_hash=item.image.hash if item.image else None,
        run_id=context.run_id,
        prompt_version_id=plan.version.id,
        parent_id=item.parent_id,
        dedupe_key=item.key,
        sample_index=item.sample_index,
        attempt=attempt.number,
        provider=context.provider,
        requested_model=plan.model,
        parameters=dict(attempt.parameters),
        variables=dict(plan.variables),
        messages=_stored_messages(messages, item.image),
        created_at=utcnow(),
        **fields,
    )


def judge_reply(
    plan: Plan, item: Item, reply: Reply, accepted_texts: AcceptedTextIndex
) -> Judgement:
    """The judgement of a reply about `item` by the rules of the plan's prompt version."""
    if reply.problem is not None:
        return Judgement(None, (), (f"{PROTOCOL_PROBLEM}{reply.problem}",), ())
    subject = Subject(
        label=item.name,
        context=item.context,
        kind=plan.kind,
        n=plan.variables.get("n"),
        language=plan.variables.get("language", ENGLISH),
    )
    return judge(reply, plan.checks, subject, accepted_texts)


def reply_fields(context: BuildContext, reply: Reply, judgement: Judgement) -> dict[str, Any]:
    """The fields of a generation that come from a reply."""
    return {
        "raw_reply": reply.text,
        "response_format": reply.response_format,
        "latency_ms": reply.latency_ms,
        "finish_reason": reply.finish_reason,
        "resolved_model": reply.resolved_model,
        "fingerprint": reply.fingerprint,
        "response_id": reply.response_id,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "calls": reply.calls,
        "cost_usd": cost_usd(context.prices, (context.plan.model, reply.resolved_model), reply),
        "parsed": judgement.parsed,
        "problems": list(judgement.problems),
        "flags": list(judgement.flags),
    }


def _stored_messages(
    messages: Sequence[dict[str, Any]], image: ImageFile | None
) -> list[dict[str, Any]]:
    """Messages as they are stored: an image is replaced by its hash."""
    if image is None:
        return list(messages)
    placeholder = {"type": "image_url", "image_url": {"url": f"sha256:{image.hash}"}}
    return [
        message
        if isinstance(message["content"], str)
        else message
        | {"content": [placeholder if "image_url" in part else part for part in message["content"]]}
        for message in messages
    ]


def cost_usd(prices: Prices, models: Sequence[str | None], reply: Reply) -> float | None:
    """The cost of a reply in US dollars; None if no price is known for any of `models`."""
    price = next((prices[model] for model in models if model and model in prices), None)
    if price is None or (reply.prompt_tokens is None and reply.completion_tokens is None):
        return None
    full_price = price[0] * (reply.prompt_tokens or 0) + price[1] * (reply.completion_tokens or 0)
    return reply.price_share * full_price / 1_000_000
